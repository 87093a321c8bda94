"""CPython's servers that take a thread for each connection, under a thousand clients at once. Says the same as it is and on fibers."""

import socket
import socketserver
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CLIENTS = int(sys.argv[1])
ROUNDS = 5


def os_threads():
    with open("/proc/self/status") as status:
        return int(next(line for line in status if line.startswith("Threads:")).split()[1])


class Pages(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        body = self.path[1:].encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class PageServer(ThreadingHTTPServer):
    request_queue_size = 1024


class Lines(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write(line.upper())


class LineServer(socketserver.ThreadingTCPServer):
    request_queue_size = 1024
    daemon_threads = True


def page(stream, number):
    stream.write(f"GET /{number} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    stream.flush()
    length = 0
    while (line := stream.readline()) != b"\r\n":
        if line.lower().startswith(b"content-length:"):
            length = int(line.split(b":")[1])
    return int(stream.read(length))


def line(stream, number):
    stream.write(f"line {number}\n".encode())
    stream.flush()
    return int(stream.readline().removeprefix(b"LINE "))


def serve(name, server, ask):
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    all_connected = threading.Barrier(CLIENTS + 1)
    answers, lock = [], threading.Lock()

    def client(number):
        with socket.create_connection(server.server_address) as connection, connection.makefile("rwb") as stream:
            mine = [ask(stream, number)]
            all_connected.wait()
            mine += [ask(stream, number) for _ in range(ROUNDS - 1)]
        with lock:
            answers.extend(mine)

    clients = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
    for each in clients:
        each.start()
    all_connected.wait()
    print(os_threads(), file=sys.stderr)
    for each in clients:
        each.join()
    server.shutdown()
    serving.join()
    server.server_close()
    print(name, len(answers), sum(answers))


serve("pages", PageServer(("127.0.0.1", 0), Pages), page)
serve("lines", LineServer(("127.0.0.1", 0), Lines), line)
