// Package load is the work that every driver does: clients with batches in flight, each a goroutine that appends
// random bytes, waits until they are durable, and appends again.
//
// The batches are made, and each client has appended one, before the clock runs. Those count that are answered after
// the warm-up and before the end; all are waited for, and the server is asked for at least as many records.
package load

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"runtime/debug"
	"slices"
	"sync"
	"time"
)

// ready is how many different batches of a client are appended in turn.
const ready = 16

// patience is for what comes after the last batch was sent.
const patience = 60 * time.Second

// Load is what the command line says.
type Load struct {
	Address   string
	Directory string
	Clients   int
	// Batches in flight of each client.
	Depth int
	// Records of a batch.
	Batch int
	// Bytes of a record.
	Size    int
	Seconds float64
	Warm    float64
}

// Append returns when the records are durable. Many goroutines call that of one client at a time.
type Append func(ctx context.Context, records [][]byte) error

// Server is what a driver makes of the one it is for.
type Server interface {
	// Client opens one of them.
	Client(ctx context.Context, number int) (Append, error)
	// Stored is how many records the server says it has.
	Stored(ctx context.Context) (int64, error)
}

// Figures is what a driver prints, on one line. The quantiles are nanoseconds.
type Figures struct {
	// Batches since the first connection, warm-up included.
	Acknowledged int64 `json:"acknowledged"`
	// Batches that count.
	Counted int   `json:"counted"`
	P50     int64 `json:"p50"`
	P99     int64 `json:"p99"`
	P999    int64 `json:"p999"`
	// Records that the server says it has.
	Stored int64 `json:"stored"`
}

// Main is a driver: `library` is the module whose version it says, when asked, and `open` finds the server.
func Main(library string, open func(context.Context, Load) (Server, error)) {
	var wanted Load
	flag.StringVar(&wanted.Address, "address", "", "host:port of the server")
	flag.StringVar(&wanted.Directory, "directory", "", "where a log is that has no server")
	flag.IntVar(&wanted.Clients, "clients", 1, "")
	flag.IntVar(&wanted.Depth, "depth", 1, "batches in flight of each client")
	flag.IntVar(&wanted.Batch, "batch", 1, "records")
	flag.IntVar(&wanted.Size, "size", 256, "bytes of a record")
	flag.Float64Var(&wanted.Seconds, "seconds", 1, "that count")
	flag.Float64Var(&wanted.Warm, "warm", 0.5, "seconds before those")
	version := flag.Bool("version", false, "of "+library)
	flag.Parse()
	if *version {
		fmt.Println(library, versionOf(library))
		return
	}
	figures, err := run(wanted, open)
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(figures)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func versionOf(library string) string {
	if info, known := debug.ReadBuildInfo(); known {
		for _, module := range info.Deps {
			if module.Path == library {
				return module.Version
			}
		}
	}
	return "of no known version"
}

func run(wanted Load, open func(context.Context, Load) (Server, error)) (Figures, error) {
	length := seconds(wanted.Warm) + seconds(wanted.Seconds)
	ctx, cancel := context.WithTimeout(context.Background(), length+2*patience)
	defer cancel()
	server, err := open(ctx, wanted)
	if err != nil {
		return Figures{}, err
	}
	clients := make([]client, wanted.Clients)
	for number := range clients {
		one := &clients[number]
		one.batches = random(wanted.Batch, wanted.Size)
		if one.add, err = server.Client(ctx, number); err == nil {
			err = one.add(ctx, one.batches[0])
		}
		if err != nil {
			return Figures{}, err
		}
	}
	figures := Figures{Acknowledged: int64(len(clients))}
	var took []int64
	for _, each := range drive(ctx, clients, wanted) {
		if each.err != nil {
			return Figures{}, each.err
		}
		figures.Acknowledged += each.acknowledged
		took = append(took, each.took...)
	}
	if len(took) == 0 {
		return Figures{}, fmt.Errorf("nothing was answered in %v s", wanted.Seconds)
	}
	slices.Sort(took)
	figures.Counted = len(took)
	figures.P50, figures.P99, figures.P999 = quantile(took, 500), quantile(took, 990), quantile(took, 999)
	figures.Stored, err = server.Stored(ctx)
	return figures, err
}

type client struct {
	add Append
	// What it appends in turn.
	batches [][][]byte
}

// worker keeps one batch in flight.
type worker struct {
	acknowledged int64
	took         []int64
	err          error
}

func drive(ctx context.Context, clients []client, wanted Load) []*worker {
	begin := time.Now().Add(seconds(wanted.Warm))
	end := begin.Add(seconds(wanted.Seconds))
	var workers []*worker
	var group sync.WaitGroup
	for _, from := range clients {
		for lane := range wanted.Depth {
			one := new(worker)
			workers = append(workers, one)
			group.Go(func() { one.work(ctx, from, lane, begin, end) })
		}
	}
	group.Wait()
	return workers
}

func (w *worker) work(ctx context.Context, from client, turn int, begin, end time.Time) {
	for sent := time.Now(); sent.Before(end); turn++ {
		if w.err = from.add(ctx, from.batches[turn%ready]); w.err != nil {
			return
		}
		now := time.Now()
		w.acknowledged++
		if !now.Before(begin) && now.Before(end) {
			w.took = append(w.took, int64(now.Sub(sent)))
		}
		sent = now
	}
}

func random(batch, size int) [][][]byte {
	batches := make([][][]byte, ready)
	for i := range batches {
		for range batch {
			record := make([]byte, size)
			_, _ = rand.Read(record) // Never fails.
			batches[i] = append(batches[i], record)
		}
	}
	return batches
}

// quantile is the smallest of the sorted samples that at least so many of a thousand do not exceed.
func quantile(samples []int64, thousandths int) int64 {
	return samples[max(0, (len(samples)*thousandths+999)/1000-1)]
}

func seconds(value float64) time.Duration {
	return time.Duration(value * float64(time.Second))
}
