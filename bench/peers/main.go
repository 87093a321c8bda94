// Peer: Go, a goroutine for each. See src/peer.rs for what is asked of it.
package main

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

var input = bufio.NewReader(os.Stdin)

func stage(line string) {
	fmt.Println(line)
	input.ReadString('\n')
}

func second(operations int, body func()) {
	body()
	start := time.Now()
	body()
	fmt.Println("figures", float64(time.Since(start).Nanoseconds())/float64(operations))
}

func cpu() time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		panic(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// The same times as those of the peers in Rust.
func nap(number, turn int) time.Duration {
	mixed := (uint64(number)*1_000_003 + uint64(turn)*7_919) * 0x9E3779B97F4A7C15
	return time.Duration(1+(mixed>>33)%1000) * time.Millisecond
}

// From the moment at which all have come, to the end of all.
func yields(count, each int) float64 {
	var start time.Time
	var all sync.WaitGroup
	missing := int64(count)
	all.Add(count)
	for i := 0; i < count; i++ {
		go func() {
			if atomic.AddInt64(&missing, -1) == 0 {
				start = time.Now()
			}
			for atomic.LoadInt64(&missing) != 0 {
				runtime.Gosched()
			}
			for j := 0; j < each; j++ {
				runtime.Gosched()
			}
			all.Done()
		}()
	}
	all.Wait()
	return float64(time.Since(start).Nanoseconds()) / float64(count*each)
}

func spawns(count, times int) {
	for i := 0; i < times; i++ {
		var all sync.WaitGroup
		all.Add(count)
		for j := 0; j < count; j++ {
			go func() { all.Done() }()
		}
		all.Wait()
	}
}

func messages(count int) {
	ping, pong := make(chan int, 1), make(chan int, 1)
	go func() {
		for i := range ping {
			pong <- i
		}
		close(pong)
	}()
	for i := 0; i < count; i++ {
		ping <- i
		if <-pong != i {
			panic("another message")
		}
	}
	close(ping)
	<-pong
}

// The lock is held over a yield, so that the others meet it locked.
func locks(count, each int) {
	var all sync.WaitGroup
	var lock sync.Mutex
	counter := 0
	all.Add(count)
	for i := 0; i < count; i++ {
		go func() {
			for j := 0; j < each; j++ {
				lock.Lock()
				runtime.Gosched()
				counter++
				lock.Unlock()
			}
			all.Done()
		}()
	}
	all.Wait()
	if counter != count*each {
		panic("a lost count")
	}
}

func timers(count, each int) {
	var all, started sync.WaitGroup
	all.Add(count)
	started.Add(count)
	for i := 0; i < count; i++ {
		go func(number int) {
			started.Done()
			time.Sleep(1500*time.Millisecond + nap(number, 0))
			for turn := 1; turn <= each; turn++ {
				time.Sleep(nap(number, turn))
			}
			all.Done()
		}(i)
	}
	started.Wait()
	before := cpu()
	all.Wait()
	fmt.Println("figures", float64((cpu()-before).Nanoseconds())/float64(count*each))
}

func park(count int) {
	stage("base")
	start := time.Now()
	never := make(chan int)
	var parked int64
	for i := 0; i < count; i++ {
		go func() {
			atomic.AddInt64(&parked, 1)
			<-never
		}()
	}
	for atomic.LoadInt64(&parked) < int64(count) {
		runtime.Gosched()
	}
	stage(fmt.Sprintf("parked %f", float64(time.Since(start).Nanoseconds())/float64(count)))
	os.Exit(0)
}

func echo(stream net.Conn) {
	defer stream.Close()
	// Go sets TCP_NODELAY by itself.
	buffer := make([]byte, 1024)
	for {
		count, err := stream.Read(buffer)
		if err != nil {
			return
		}
		if _, err := stream.Write(buffer[:count]); err != nil {
			return
		}
	}
}

func serve() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	fmt.Println("listening on", listener.Addr())
	for {
		stream, err := listener.Accept()
		if err != nil {
			panic(err)
		}
		go echo(stream)
	}
}

func main() {
	var numbers [3]int
	for i := range numbers {
		var err error
		if len(os.Args) != 5 {
			err = fmt.Errorf("%d words", len(os.Args)-1)
		} else {
			numbers[i], err = strconv.Atoi(os.Args[i+2])
		}
		if err != nil || numbers[i] <= 0 {
			fmt.Fprintln(os.Stderr, "usage: PROGRAM SHAPE COUNT EFFORT WORKERS:", err)
			os.Exit(2)
		}
	}
	shape, count, effort := os.Args[1], numbers[0], numbers[1]
	runtime.GOMAXPROCS(numbers[2])
	each := effort / count
	if each == 0 {
		each = 1
	}
	switch shape {
	case "yield":
		yields(count, each)
		fmt.Println("figures", yields(count, each))
	case "spawn":
		second(count*each, func() { spawns(count, each) })
	case "mpsc":
		second(2*effort, func() { messages(effort) })
	case "mutex":
		second(count*each, func() { locks(count, each) })
	case "timers":
		timers(count, each)
	case "park":
		park(count)
	case "echo":
		serve()
	default:
		fmt.Fprintln(os.Stderr, "no shape", shape, "here")
		os.Exit(2)
	}
}
