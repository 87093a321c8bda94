// Peer: Boost.Fiber, and Boost.Context for the shape `switch`. See src/peer.rs for what is asked of it.
//
// Its fibers run on the thread that made them, so there is one worker. Stacks come from Boost's pool, 16 KiB each: its default
// (128 KiB from malloc, each a mapping of its own) ends at the kernel's 65,530 mappings.

#include <boost/context/fiber.hpp>
#include <boost/context/fixedsize_stack.hpp>
#include <boost/fiber/all.hpp>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <iostream>
#include <string>
#include <sys/resource.h>
#include <vector>

namespace fibers = boost::fibers;
using Clock = std::chrono::steady_clock;

static fibers::pooled_fixedsize_stack stacks{16 * 1024};

template <class Body> static fibers::fiber spawn(Body body) {
    return fibers::fiber(fibers::launch::post, std::allocator_arg, stacks, std::move(body));
}

static double since(Clock::time_point start, size_t operations) {
    return std::chrono::duration<double, std::nano>(Clock::now() - start).count() / double(operations);
}

static void second(size_t operations, const std::function<void()> &body) {
    body();
    auto start = Clock::now();
    body();
    std::cout << "figures " << since(start, operations) << std::endl;
}

static void stage(const std::string &line) {
    std::cout << line << std::endl;
    std::string answer;
    std::getline(std::cin, answer);
}

static double cpu() {
    rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    auto nanoseconds = [](timeval t) { return double(t.tv_sec) * 1e9 + double(t.tv_usec) * 1e3; };
    return nanoseconds(usage.ru_utime) + nanoseconds(usage.ru_stime);
}

// The same times as those of the peers in Rust.
static std::chrono::milliseconds nap(uint64_t number, uint64_t turn) {
    uint64_t mixed = (number * 1000003 + turn * 7919) * 0x9E3779B97F4A7C15u;
    return std::chrono::milliseconds(1 + (mixed >> 33) % 1000);
}

static void switches(size_t count, size_t each) {
    namespace context = boost::context;
    std::vector<context::fiber> all;
    for (size_t i = 0; i < count; i++) {
        all.emplace_back(std::allocator_arg, context::fixedsize_stack{16 * 1024}, [](context::fiber &&caller) {
            for (;;) caller = std::move(caller).resume();
            return std::move(caller);
        });
    }
    second(2 * count * each, [&] {
        for (size_t i = 0; i < each; i++)
            for (auto &one : all) one = std::move(one).resume();
    });
    std::_Exit(0);
}

static void join(std::vector<fibers::fiber> &all) {
    for (auto &one : all) one.join();
}

// From the moment at which all have come, to the end of all.
static double yields(size_t count, size_t each) {
    Clock::time_point start;
    size_t missing = count;
    std::vector<fibers::fiber> all;
    for (size_t i = 0; i < count; i++)
        all.push_back(spawn([&, each] {
            if (--missing == 0) start = Clock::now();
            while (missing != 0) boost::this_fiber::yield();
            for (size_t j = 0; j < each; j++) boost::this_fiber::yield();
        }));
    join(all);
    return since(start, count * each);
}

static void spawns(size_t count, size_t times) {
    for (size_t i = 0; i < times; i++) {
        std::vector<fibers::fiber> all;
        for (size_t j = 0; j < count; j++) all.push_back(spawn([] {}));
        join(all);
    }
}

static void messages(size_t count) {
    fibers::buffered_channel<size_t> ping{2}, pong{2};
    auto other = spawn([&] {
        for (size_t i : ping) pong.push(i);
    });
    for (size_t i = 0; i < count; i++) {
        ping.push(i);
        if (pong.value_pop() != i) std::abort();
    }
    ping.close();
    other.join();
}

// The lock is held over a yield, so that the others meet it locked.
static void locks(size_t count, size_t each) {
    fibers::mutex lock;
    size_t counter = 0;
    std::vector<fibers::fiber> all;
    for (size_t i = 0; i < count; i++)
        all.push_back(spawn([&, each] {
            for (size_t j = 0; j < each; j++) {
                std::unique_lock<fibers::mutex> held{lock};
                boost::this_fiber::yield();
                counter++;
            }
        }));
    join(all);
    if (counter != count * each) std::abort();
}

static void timers(size_t count, size_t each) {
    size_t started = 0;
    std::vector<fibers::fiber> all;
    for (size_t i = 0; i < count; i++)
        all.push_back(spawn([&, i, each] {
            started++;
            boost::this_fiber::sleep_for(std::chrono::milliseconds(1500) + nap(i, 0));
            for (size_t turn = 1; turn <= each; turn++) boost::this_fiber::sleep_for(nap(i, turn));
        }));
    while (started < count) boost::this_fiber::yield();
    double before = cpu();
    join(all);
    std::cout << "figures " << (cpu() - before) / double(count * each) << std::endl;
}

static void park(size_t count) {
    spawn([] {}).join();
    stage("base");
    auto start = Clock::now();
    fibers::mutex lock;
    fibers::condition_variable never;
    size_t parked = 0;
    for (size_t i = 0; i < count; i++)
        spawn([&] {
            parked++;
            std::unique_lock<fibers::mutex> held{lock};
            for (;;) never.wait(held);
        }).detach();
    while (parked < count) boost::this_fiber::yield();
    stage("parked " + std::to_string(since(start, count)));
    std::_Exit(0);
}

int main(int words, char **word) {
    size_t number[3] = {};
    for (int i = 0; i < 3 && words == 5; i++) number[i] = std::strtoull(word[i + 2], nullptr, 10);
    if (number[0] == 0 || number[1] == 0 || number[2] == 0) {
        std::cerr << "usage: PROGRAM SHAPE COUNT EFFORT WORKERS, all but the first numbers above 0\n";
        return 2;
    }
    std::string shape = word[1];
    size_t count = number[0], effort = number[1], each = std::max<size_t>(effort / count, 1);
    if (shape == "switch") switches(count, each);
    else if (shape == "yield") {
        yields(count, each);
        std::cout << "figures " << yields(count, each) << std::endl;
    }
    else if (shape == "spawn") second(count * each, [&] { spawns(count, each); });
    else if (shape == "mpsc") second(2 * effort, [&] { messages(effort); });
    else if (shape == "mutex") second(count * each, [&] { locks(count, each); });
    else if (shape == "timers") timers(count, each);
    else if (shape == "park") park(count);
    else {
        std::cerr << "no shape " << shape << " here\n";
        return 2;
    }
}
