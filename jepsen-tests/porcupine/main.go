// Asks Porcupine whether the registers of a run are linearizable: a second opinion on what `check` says.
//
//	git clone https://github.com/anishathalye/porcupine
//	cp -r jepsen-tests/porcupine porcupine/registers && cd porcupine
//	go run ./registers …/register-kill-leader-7/history.jsonl
//
// Exit code 0: all are; 1: some are not; 2: a file is no history.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"math"
	"os"

	"github.com/anishathalye/porcupine"
)

// The process that makes the faults.
const nemesis = -1

// No document. The values that callers write are above it.
const absent = 0

type record struct {
	Time    int64           `json:"time"`
	Process int64           `json:"process"`
	Type    string          `json:"type"`
	F       string          `json:"f"`
	Key     string          `json:"key"`
	Value   json.RawMessage `json:"value"`
	Error   string          `json:"error"`
}

type kind int

const (
	read kind = iota
	// Whatever was there before; a delete writes that nothing is there.
	write
	// Only if old was there; a create swaps from nothing.
	swap
	// A swap of which nobody knows what came of it: it may have been refused.
	maybeSwap
	// A swap that was refused, as old was not there.
	refused
)

type input struct {
	kind     kind
	old, new int
}

var register = porcupine.Model{
	Init: func() interface{} { return absent },
	Step: func(state, in, out interface{}) (bool, interface{}) {
		is, call := state.(int), in.(input)
		switch call.kind {
		case read:
			return out.(int) == is, is
		case write:
			return true, call.new
		case refused:
			return is != call.old, is
		case maybeSwap:
			if is != call.old {
				return true, is
			}
			return true, call.new
		default:
			return is == call.old, call.new
		}
	},
}

func main() {
	code := 0
	for _, path := range os.Args[1:] {
		keys, calls, err := load(path)
		if err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", path, err)
			os.Exit(2)
		}
		bad := 0
		for key, operations := range keys {
			if !porcupine.CheckOperations(register, operations) {
				fmt.Printf("%s: %s is not linearizable\n", path, key)
				bad++
				code = 1
			}
		}
		fmt.Printf("%s: %d calls, %d of %d registers linearizable\n", path, calls, len(keys)-bad, len(keys))
	}
	os.Exit(code)
}

func load(path string) (map[string][]porcupine.Operation, int, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, 0, err
	}
	defer file.Close()
	keys, calls := map[string][]porcupine.Operation{}, 0
	open := map[int64]record{}
	end := func(begun, ended record) error {
		operation, shows, err := operation(begun, ended)
		if err == nil && shows {
			keys[begun.Key] = append(keys[begun.Key], operation)
			calls++
		}
		return err
	}
	lines := bufio.NewScanner(file)
	lines.Buffer(make([]byte, 1<<16), 1<<26)
	for lines.Scan() {
		var line record
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			return nil, 0, err
		}
		if line.Process == nemesis {
			continue
		}
		if line.Type == "invoke" {
			open[line.Process] = line
			continue
		}
		begun, there := open[line.Process]
		if !there {
			return nil, 0, fmt.Errorf("process %d ends a call that it has not begun", line.Process)
		}
		delete(open, line.Process)
		if err := end(begun, line); err != nil {
			return nil, 0, err
		}
	}
	for _, begun := range open {
		if err := end(begun, record{Type: "info"}); err != nil {
			return nil, 0, err
		}
	}
	return keys, calls, lines.Err()
}

// A call as Porcupine takes it; not those that show nothing, such as a read without an answer.
func operation(begun, ended record) (porcupine.Operation, bool, error) {
	call, output := input{}, absent
	var err error
	switch begun.F {
	case "read":
		if ended.Type != "ok" {
			return porcupine.Operation{}, false, nil
		}
		output, err = value(ended.Value)
	case "write":
		call.kind = write
		call.new, err = value(begun.Value)
	case "delete":
		call = input{kind: write, new: absent}
	case "create":
		call.kind = swap
		call.new, err = value(begun.Value)
	case "cas":
		var pair [2]int
		err = json.Unmarshal(begun.Value, &pair)
		call = input{kind: swap, old: pair[0], new: pair[1]}
	default:
		// Questions of the harness.
		return porcupine.Operation{}, false, nil
	}
	returned := ended.Time
	switch {
	case ended.Type == "info":
		returned = math.MaxInt64
		if call.kind == swap {
			call.kind = maybeSwap
		}
	case ended.Type == "fail" && call.kind == swap && ended.Error == "precondition":
		call.kind = refused
	case ended.Type == "fail":
		return porcupine.Operation{}, false, err
	}
	return porcupine.Operation{Input: call, Call: begun.Time, Output: output, Return: returned}, true, err
}

func value(text json.RawMessage) (int, error) {
	if string(text) == "null" {
		return absent, nil
	}
	var number int
	err := json.Unmarshal(text, &number)
	return number, err
}
