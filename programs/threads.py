"""What CPython makes of threads, thousands of them. Says the same as it is and on fibers."""

import concurrent.futures
import queue
import subprocess
import sys
import threading
import time

MANY = int(sys.argv[1])


def os_threads():
    with open("/proc/self/status") as status:
        return int(next(line for line in status if line.startswith("Threads:")).split()[1])


# All are there at once: each waits for the last.
local, lock, numbers, total = threading.local(), threading.Lock(), queue.Queue(), 0
all_there, begin, there = threading.Condition(), threading.Event(), 0


def body(number):
    global total, there
    local.number = number
    with all_there:
        there += 1
        all_there.notify_all()
    begin.wait()
    numbers.put(number)
    with lock:
        total += local.number


threads = [threading.Thread(target=body, args=(number,)) for number in range(MANY)]
for thread in threads:
    thread.start()
with all_there:
    all_there.wait_for(lambda: there == MANY)
print(os_threads(), file=sys.stderr)
begin.set()
print("queue", sum(numbers.get() for _ in threads))
for thread in threads:
    thread.join()
print("total", total, "alive", threading.active_count())

with concurrent.futures.ThreadPoolExecutor(200) as pool:
    print("pool", sum(pool.map(lambda number: number * number, range(2000))))

barrier, rounds = threading.Barrier(50), []


def meets():
    for _ in range(20):
        if barrier.wait() == 0:
            rounds.append(1)


threads = [threading.Thread(target=meets) for _ in range(50)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print("barrier", len(rounds))

semaphore, most, inside = threading.BoundedSemaphore(7), 0, 0


def enters():
    global most, inside
    with semaphore:
        with lock:
            inside += 1
            most = max(most, inside)
        time.sleep(0.001)
        with lock:
            inside -= 1


threads = [threading.Thread(target=enters) for _ in range(100)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print("semaphore", most)


def child(number):
    done = subprocess.run([sys.executable, "-c", f"print({number})"], capture_output=True, check=True)
    return int(done.stdout)


with concurrent.futures.ThreadPoolExecutor(8) as pool:
    print("children", list(pool.map(child, range(8))))
print("timer", threading.Event().wait(0.01))
