import java.io.IOException;
import java.net.InetAddress;
import java.net.ServerSocket;
import java.net.Socket;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.Callable;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.locks.LockSupport;

/**
 * What a Java machine makes of threads: many of them, monitors, pools, the collector beside allocation, sockets that are
 * closed under whoever waits in them, stacks that overflow, interruption. Says the same as it is and on fibers.
 */
public class Threads {
    private static int counter;

    private static synchronized void count() {
        counter++;
    }

    public static void main(String[] arguments) throws Exception {
        int many = Integer.parseInt(arguments[0]);
        monitors(many);
        waiting();
        pools();
        garbage();
        sockets();
        overflow();
        interruption();
        locals();
        System.err.println(tasks());
        System.exit(7);
    }

    private static void monitors(int many) throws Exception {
        CountDownLatch all = new CountDownLatch(many);
        List<Thread> threads = new ArrayList<>();
        for (int i = 0; i < many; i++) {
            Thread thread = new Thread(() -> {
                all.countDown();
                try {
                    all.await();
                } catch (InterruptedException unexpected) {
                    return;
                }
                for (int round = 0; round < 10; round++) {
                    count();
                }
            });
            thread.start();
            threads.add(thread);
        }
        for (Thread thread : threads) {
            thread.join();
        }
        System.out.println("counted " + counter);
    }

    private static void waiting() throws Exception {
        LinkedBlockingQueue<Integer> queue = new LinkedBlockingQueue<>(4);
        Object monitor = new Object();
        int[] turn = {0};
        Thread producer = new Thread(() -> {
            try {
                for (int i = 0; i < 1000; i++) {
                    queue.put(i);
                }
                synchronized (monitor) {
                    while (turn[0] < 1) {
                        monitor.wait();
                    }
                    turn[0] = 2;
                    monitor.notifyAll();
                }
            } catch (InterruptedException unexpected) {
                throw new IllegalStateException(unexpected);
            }
        });
        producer.start();
        long sum = 0;
        for (int i = 0; i < 1000; i++) {
            sum += queue.take();
        }
        synchronized (monitor) {
            turn[0] = 1;
            monitor.notifyAll();
            while (turn[0] < 2) {
                monitor.wait();
            }
        }
        producer.join();
        long begin = System.nanoTime();
        LockSupport.parkNanos(20_000_000);
        System.out.println("queue " + sum + ", parked " + (System.nanoTime() - begin >= 20_000_000));
    }

    private static void pools() throws Exception {
        ExecutorService pool = Executors.newFixedThreadPool(32);
        List<Future<Integer>> futures = new ArrayList<>();
        for (int i = 0; i < 2000; i++) {
            int number = i;
            Callable<Integer> task = () -> number * 2;
            futures.add(pool.submit(task));
        }
        long sum = 0;
        for (Future<Integer> future : futures) {
            sum += future.get();
        }
        pool.shutdown();
        System.out.println("pool " + sum);
    }

    private static void garbage() throws Exception {
        ConcurrentHashMap<Integer, byte[]> kept = new ConcurrentHashMap<>();
        List<Thread> threads = new ArrayList<>();
        for (int i = 0; i < 16; i++) {
            int number = i;
            Thread thread = new Thread(() -> {
                for (int round = 0; round < 4000; round++) {
                    kept.put(number * 100 + round % 100, new byte[4096]);
                }
            });
            thread.start();
            threads.add(thread);
        }
        for (Thread thread : threads) {
            thread.join();
        }
        System.gc();
        System.out.println("kept " + kept.size());
    }

    private static void sockets() throws Exception {
        ServerSocket server = new ServerSocket(0, 100, InetAddress.getLoopbackAddress());
        List<String> ends = new ArrayList<>();
        Thread acceptor = new Thread(() -> {
            try {
                while (true) {
                    Socket socket = server.accept();
                    new Thread(() -> {
                        try (socket) {
                            socket.getInputStream().transferTo(socket.getOutputStream());
                        } catch (IOException closed) {
                            // The client has gone.
                        }
                    }).start();
                }
            } catch (IOException closed) {
                ends.add(closed.getMessage());
            }
        });
        acceptor.start();
        for (int i = 0; i < 50; i++) {
            try (Socket client = new Socket(server.getInetAddress(), server.getLocalPort())) {
                client.getOutputStream().write(i);
                if (client.getInputStream().read() != i) {
                    throw new IllegalStateException("another's echo");
                }
            }
        }
        Socket idle = new Socket(server.getInetAddress(), server.getLocalPort());
        Thread reader = new Thread(() -> {
            try {
                idle.getInputStream().read();
            } catch (IOException closed) {
                ends.add(closed.getMessage());
            }
        });
        reader.start();
        while (reader.getState() != Thread.State.RUNNABLE) {
            Thread.onSpinWait();
        }
        Thread.sleep(20);
        idle.close();
        reader.join();
        server.close();
        acceptor.join();
        System.out.println("sockets " + ends);
    }

    private static int deep(int depth) {
        return depth == Integer.MAX_VALUE ? 0 : deep(depth + 1) + 1;
    }

    private static void overflow() throws Exception {
        int[] caught = {0};
        for (int i = 0; i < 4; i++) {
            Thread thread = new Thread(() -> {
                try {
                    deep(0);
                } catch (StackOverflowError expected) {
                    caught[0]++;
                }
            });
            thread.start();
            thread.join();
        }
        System.out.println("overflows " + caught[0]);
    }

    private static void interruption() throws Exception {
        String[] outcome = {"slept"};
        Thread sleeper = new Thread(() -> {
            try {
                Thread.sleep(60_000);
            } catch (InterruptedException expected) {
                outcome[0] = "interrupted";
            }
        });
        sleeper.start();
        sleeper.interrupt();
        sleeper.join();
        System.out.println("sleeper " + outcome[0]);
    }

    private static void locals() throws Exception {
        ThreadLocal<Integer> local = ThreadLocal.withInitial(() -> 1);
        int[] seen = {0};
        Thread thread = new Thread(() -> {
            local.set(5);
            seen[0] = local.get();
        });
        thread.start();
        thread.join();
        System.out.println("local " + local.get() + " and " + seen[0]);
    }

    /** Threads of the kernel's. */
    private static int tasks() {
        return new java.io.File("/proc/self/task").list().length;
    }
}
