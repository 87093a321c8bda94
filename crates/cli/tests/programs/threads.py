"""What CPython makes threads of. Says the same as it is and under `sleave run`."""
import concurrent.futures
import queue
import subprocess
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def os_threads():
    with open("/proc/self/status") as status:
        return int(next(line for line in status if line.startswith("Threads:")).split()[1])


local, lock, numbers, total = threading.local(), threading.Lock(), queue.Queue(), 0


def body(number):
    global total
    local.number = number
    time.sleep(0.02)
    numbers.put(number)
    with lock:
        total += local.number


threads = [threading.Thread(target=body, args=(i,)) for i in range(200)]
for thread in threads:
    thread.start()
print(sum(numbers.get() for _ in threads))
for thread in threads:
    thread.join()
print(total)


# Whoever comes last counts: then all clients and all that serve them are there.
all_there = threading.Barrier(50, action=lambda: print(os_threads(), file=sys.stderr))


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        all_there.wait()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.path[1:].encode())

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    request_queue_size = 100


server = Server(("127.0.0.1", 0), Handler)
serving = threading.Thread(target=server.serve_forever)
serving.start()


def get(number):
    with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/{number}") as answer:
        return int(answer.read())


with concurrent.futures.ThreadPoolExecutor(50) as pool:
    print(sum(pool.map(get, range(50))))
server.shutdown()
serving.join()

event = threading.Event()
print(event.wait(0.02))
threading.Timer(0.02, event.set).start()
print(event.wait(60))
print(subprocess.run(["echo", "a child"], capture_output=True).stdout)
