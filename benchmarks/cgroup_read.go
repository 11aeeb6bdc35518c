// The reader of runc's libcontainer, for benchmarks/cgroup_read.py: version 1 reads cpu, cpuacct and memory.
//
// stdin: a line for each group: the folder on version 2, or "cpu=FOLDER cpuacct=FOLDER memory=FOLDER"; an empty line at
// the end. Then a number of sweeps, answered with the nanoseconds of CPU (argument 1: of time) that they took.
package main

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/fs"
	"github.com/opencontainers/cgroups/fs2"
	"golang.org/x/sys/unix"
)

type reader interface {
	GetStats() (*cgroups.Stats, error)
}

func now(clock int32) int64 {
	var at unix.Timespec
	if err := unix.ClockGettime(clock, &at); err != nil {
		panic(err)
	}
	return at.Nano()
}

func open(line string) (reader, error) {
	config := &cgroups.Cgroup{Resources: &cgroups.Resources{}}
	if !strings.Contains(line, "=") {
		return fs2.NewManager(config, line)
	}
	paths := map[string]string{}
	for _, word := range strings.Fields(line) {
		controller, folder, _ := strings.Cut(word, "=")
		paths[controller] = folder
	}
	return fs.NewManager(config, paths)
}

func main() {
	clock := int32(unix.CLOCK_PROCESS_CPUTIME_ID)
	if len(os.Args) > 1 && os.Args[1] == "1" {
		clock = unix.CLOCK_MONOTONIC
	}
	var readers []reader
	input := bufio.NewScanner(os.Stdin)
	for input.Scan() && input.Text() != "" {
		made, err := open(input.Text())
		if err != nil {
			panic(err)
		}
		readers = append(readers, made)
	}
	fmt.Println("ready")
	for input.Scan() {
		sweeps, _ := strconv.Atoi(strings.Fields(input.Text())[0])
		began := now(clock)
		for i := 0; i < sweeps; i++ {
			for _, each := range readers {
				if _, err := each.GetStats(); err != nil {
					panic(err)
				}
			}
		}
		fmt.Println(now(clock) - began)
	}
}
