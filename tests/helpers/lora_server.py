"""A small server of OpenAI's protocol that samples, and loads adapters as vLLM does."""

import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class LoraServer:
    """Serves a model on this machine; `script` says what befalls the next requests instead.

    Each of `script` is a function of (path, body) that returns None (all is well), "dies" (the
    connection is cut) or (status, message).
    """

    def __init__(self, folder):
        self.folder, self.adapters, self.requests, self.script = str(folder), {}, [], []
        self.lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with server.lock:
                    server.requests.append((self.path, body))
                    befalls = server.script[0](self.path, body) if server.script else None
                    if befalls is not None:
                        server.script.pop(0)
                        if befalls == "dies":
                            self.connection.shutdown(socket.SHUT_RDWR)
                            return
                    status, content = befalls or server.answer(self.path, body)
                text = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def close(self):
        self.http.shutdown()
        self.http.server_close()

    def answer(self, path, body):
        if path == "/v1/load_lora_adapter":
            self.adapters[body["lora_name"]] = self._load(body["lora_path"])
            return 200, "Success"
        if path == "/v1/unload_lora_adapter":
            known = self.adapters.pop(body["lora_name"], None)
            return (200, "Success") if known else (404, {"error": {"message": "no such adapter"}})
        if body["model"] not in self.adapters:
            message = f"The model `{body['model']}` does not exist."
            return 404, {"error": {"message": message}}
        (found,) = self.adapters[body["model"]].sample(
            [body["prompt"]],
            body.get("n", 1),
            max_new_tokens=body["max_tokens"],
            temperature=body["temperature"],
            seeds=[body["seed"]],
        )
        choices = [
            {"index": i, "text": text, "finish_reason": "stop" if finished else "length"}
            for i, (text, finished) in enumerate(zip(found.texts, found.finished, strict=True))
        ]
        return 200, {"choices": choices}

    def _load(self, adapter):
        from peft import PeftModel
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from pyfast.train.policy.policy import Policy

        model = AutoModelForCausalLM.from_pretrained(self.folder)
        tokenizer = AutoTokenizer.from_pretrained(self.folder)
        return Policy(PeftModel.from_pretrained(model, adapter), tokenizer, rank=1)
