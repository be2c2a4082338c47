"""Runs in child processes that are killed where a test says."""

import json
import random
import subprocess
import sys
import textwrap
from pathlib import Path

# A process that imports everything once, and then runs the command line in forked children that
# are killed where they are told to be. It is never threaded itself, so its children may be.
NURSERY = """
    import json, os, signal, socket, sys, time
    from pyfast import cli
    from pyfast.train import processes
    import torch.distributed
    import pyfast.train.loop, pyfast.train.reports.plots, pyfast.losses, peft, transformers
    from vaderSentiment import vaderSentiment

    def kill_at(count, signal_number, path):
        # Every touch of a file is an audit event: die just before the count-th of such a path.
        seen = 0
        def hook(event, arguments):
            nonlocal seen
            if event in ("open", "os.rename", "os.remove", "os.truncate", "os.mkdir"):
                if path in str(arguments[0]):
                    seen += 1
                    if seen == count:
                        os.kill(os.getpid(), signal_number)
        sys.addaudithook(hook)

    def fails_at(count, what):
        # Just before the count-th word with the other processes: die, hang, or speak otherwise.
        said, speak = 0, processes.Team._call
        def call(self, *arguments, **options):
            nonlocal said
            said += 1
            if said == count:
                os.kill(os.getpid(), getattr(signal, what))
            speak(self, *arguments, **options)
        processes.Team._call = call

    def otherwise(step):
        # From a step on, this process would learn from other groups than the others.
        from pyfast.train.context import Context
        agree = Context.agree_on
        def changed(self, now, groups):
            if now == step:
                groups[0].responses.reverse()
            agree(self, now, groups)
        Context.agree_on = changed

    def stops(step):
        from pyfast.train.context import Context
        from pyfast.train.errors import UserError
        agree = Context.agree_on
        def changed(self, now, groups):
            if now == step:
                raise UserError("stopped")
            agree(self, now, groups)
        Context.agree_on = changed

    def drifts(step):
        # At a step, this process's sum of the gradients is another.
        from pyfast.train.context import Context
        reduce, seen = Context.reduce, 0
        def changed(self, parameters):
            nonlocal seen
            reduce(self, parameters)
            if seen == step:
                for parameter in parameters.values():
                    parameter.grad.mul_(1.001)
            seen += 1
        Context.reduce = changed

    def slow(seconds):
        # Each word with the other processes comes late.
        speak = processes.Team._call
        def call(self, *arguments, **options):
            time.sleep(seconds)
            speak(self, *arguments, **options)
        processes.Team._call = call

    def stands_in(folder):
        # Files of relative names are others here.
        os.chdir(folder)

    def writes(path):
        # Note what this process changes of a folder's files.
        names = ("os.rename", "os.remove", "os.truncate", "os.mkdir", "os.rmdir", "shutil.rmtree")
        changing = os.O_WRONLY | os.O_RDWR | os.O_CREAT
        def hook(event, arguments):
            opened = event == "open" and isinstance(arguments[2], int) and arguments[2] & changing
            if (opened or event in names) and path in str(arguments[0]):
                os.write(2, f"writes {event} {arguments[0]};".encode())
        sys.addaudithook(hook)

    def start(order, rank, count, port):
        child = os.fork()
        if child == 0:
            name = order["log"] if rank == 0 else f"{order['log']}.{rank}"
            log = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(log, 1)
            os.dup2(log, 2)
            if count > 1:
                os.environ.update(
                    RANK=str(rank), WORLD_SIZE=str(count), LOCAL_RANK=str(rank),
                    MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
                )
            if "cwd" in order:
                os.chdir(order["cwd"])
            if "touch" in order and rank == 0:
                kill_at(order["touch"], order["signal"], order.get("path", "/run-"))
            if order.get("bad", [None])[0] == rank:
                globals()[order["bad"][1]](*order["bad"][2:])
            if "peak" in order:
                open("/proc/self/clear_refs", "w").write("5")
            status = cli.main(order["arguments"])
            if "peak" in order:
                text = open("/proc/self/status").read()
                open(f"{order['peak']}.{rank}", "w").write(text)
            os._exit(status)
        return child

    def free_port():
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            return one.getsockname()[1]

    def ended(children, seconds):
        # Their exit statuses; None of one that has not ended by then, which is killed.
        found, stopped, until = {}, set(), time.monotonic() + seconds
        while len(found) < len(children):
            for child in children:
                if child not in found:
                    pid, status = os.waitpid(child, os.WNOHANG | os.WUNTRACED)
                    if pid and os.WIFSTOPPED(status):
                        stopped.add(child)
                    elif pid:
                        found[child] = os.waitstatus_to_exitcode(status)
                    elif time.monotonic() > until or stopped | set(found) == set(children):
                        os.kill(child, signal.SIGKILL)
                        os.waitpid(child, 0)
                        found[child] = None
            time.sleep(0.01)
        return [found[child] for child in children]

    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        if "processes" in order:
            count, port = order["processes"], free_port()
            children = [start(order, rank, count, port) for rank in range(count)]
            print(json.dumps(ended(children, order["within"])), flush=True)
            continue
        child = start(order, 0, 1, 0)
        if "seconds" in order:
            time.sleep(order["seconds"])
            os.kill(child, order["signal"])
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
KILL, INTERRUPT = 9, 2


class Nursery:
    """Runs `pyfast train RECIPE` in children."""

    def __init__(self, folder, config, recipe="ampo"):
        self.folder, self.config, self.recipe = folder, config, recipe
        self.process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(NURSERY)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout.readline() == "ready\n"

    def run(self, out, *arguments, **order):
        """Run in a child; return its exit status (-9: killed) and output."""
        log = self.folder / "log.txt"
        command = [
            "train",
            self.recipe,
            "--config",
            str(self.config),
            "--out",
            str(out),
            *arguments,
        ]
        order = {"arguments": command, "log": str(log), "signal": KILL, **order}
        print(json.dumps(order), file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline()), log.read_text()

    def kill_at_random(self, out, touches, most=4):
        """Run it up to `most` times, each killed before one of `touches` of its files.

        Returns how often it was killed: fewer where it ended first.
        """
        for kills in range(most):
            status, output = self.run(out, touch=next(touches))
            if status == 0:
                return kills
            assert status == -KILL, output
        return most

    def finish(self, out):
        """Run it to its end; return what it left."""
        status, output = self.run(out)
        assert status == 0, output
        return contents(out)

    def run_together(self, out, *arguments, processes=2, within=240, **order):
        """Run in several processes; return their exit statuses (None: hung) and outputs."""
        log = self.folder / "log.txt"
        command = ["train", self.recipe, "--config", str(self.config), "--out", str(out)]
        order = {
            "arguments": [*command, *arguments], "log": str(log), "signal": KILL,
            "processes": processes, "within": within, **order,
        }  # fmt: skip
        print(json.dumps(order), file=self.process.stdin, flush=True)
        statuses = json.loads(self.process.stdout.readline())
        logs = [log, *(Path(f"{log}.{rank}") for rank in range(1, processes))]
        return statuses, [path.read_text() for path in logs]

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def touches(low, high, seed):
    """Yield which touch of a run's files to be killed at, again and again."""
    generator = random.Random(seed)
    while True:
        yield generator.randrange(low, high)


def contents(out: Path):
    """Everything that must be the same: all but times and pictures."""
    kept = [
        p for p in out.rglob("*") if p.is_file() and p.suffix in (".jsonl", ".json", ".safetensors")
    ]
    # peft lists the adapted modules in the order of a set
    skipped = {"timings.jsonl", "adapter_config.json"}
    return {str(p.relative_to(out)): p.read_bytes() for p in kept if p.name not in skipped}
