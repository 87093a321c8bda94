// What C++ makes of threads. Says the same as it is and under `sleave run`.
#include <pthread.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <exception>
#include <future>
#include <iostream>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

thread_local std::string own = "own";

struct Unwound {
    const char *where;
    ~Unwound() { std::cout << "unwound: " << where << std::endl; }
};

struct Ends {
    ~Ends() { std::cout << "thread-local destroyed" << std::endl; }
};

// An exception that nobody catches ends the program by std::terminate, as on any thread.
static int nobody_catches() {
    std::set_terminate([] {
        std::cout << "terminate" << std::endl;
        _exit(0);
    });
    std::thread([] { throw 5; }).join();
    return 1;
}

int main(int arguments, char **argument) {
    if (arguments > 1 && !std::strcmp(argument[1], "terminate")) return nobody_catches();

    auto changed = std::async(std::launch::async, [] { return own += " changed"; });
    std::cout << changed.get() << ", " << own << std::endl;

    std::promise<int> promise;
    std::thread thrower([&] {
        Unwound unwound{"by an exception"};
        try {
            Unwound inner{"inside"};
            throw std::runtime_error("thrown in a thread");
        } catch (...) {
            promise.set_exception(std::current_exception());
        }
    });
    try {
        promise.get_future().get();
    } catch (const std::exception &error) {
        thrower.join();
        std::cout << error.what() << std::endl;
    }

    std::thread([] {
        thread_local Ends ends;
        (void)&ends;
        Unwound unwound{"by pthread_exit"};
        pthread_exit(nullptr);
    }).join();

    std::atomic<int> count{0};
    std::once_flag once;
    std::vector<std::thread> threads;
    for (int i = 0; i < 1000; i++)
        threads.emplace_back([&] {
            std::this_thread::sleep_for(std::chrono::milliseconds(2));
            std::call_once(once, [&] { count += 1000; });
            count++;
        });
    for (auto &thread : threads) thread.join();
    std::cout << count << std::endl;
}
