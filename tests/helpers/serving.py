"""The page of `pyfast label`, served in a thread, and plain requests to it."""

import contextlib
import http.client
import json
import socket
import threading


@contextlib.contextmanager
def serving(desk, token="secret"):
    """Serve a desk; yield the port."""
    import uvicorn

    from pyfast.label import page

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        config = uvicorn.Config(page.app(desk, token), log_level="warning", lifespan="off")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()


class Client:
    """Requests as the page makes them; each part can be made wrong."""

    def __init__(self, port, token="secret"):
        self.port, self.token = port, token

    def __call__(self, method, path, body=None, **headers):
        """Return status, headers and content; a header of None is left out."""
        host = headers.pop("host", f"127.0.0.1:{self.port}")
        made = {"Host": host, "Authorization": f"Bearer {self.token}"}
        if method == "POST":
            made |= {"Origin": f"http://127.0.0.1:{self.port}", "Content-Type": "application/json"}
        made |= {name.replace("_", "-"): value for name, value in headers.items()}
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.putrequest(method, path, skip_host=True)
        for name, value in made.items():
            if value is not None:
                connection.putheader(name, value)
        if method == "POST":
            connection.putheader("Content-Length", str(len(data)))
        connection.endheaders()
        if method == "POST":
            connection.send(data)
        response = connection.getresponse()
        content = response.read()
        connection.close()
        if response.getheader("content-type") == "application/json":
            content = json.loads(content)
        return response.status, dict(response.getheaders()), content
