// Command tessera drives a log of Tessera's on a POSIX file system, in its own process: it is a library.
//
// An entry is waited for until it is integrated, which is when Tessera has synced it. All that may be in flight at once
// fits into one of Tessera's batches, which is sequenced when it is full or a little while old.
package main

import (
	"context"
	"crypto/rand"
	"time"

	"github.com/transparency-dev/tessera"
	"github.com/transparency-dev/tessera/storage/posix"
	"golang.org/x/mod/sumdb/note"

	"kimberlite/benches/drivers/load"
)

// maxAge is how long Tessera gathers entries for a batch that is not full. With 5 ms those of a thousand clients are
// sequenced in parts, at half the rate.
const maxAge = 20 * time.Millisecond

type server struct {
	appender *tessera.Appender
	reader   tessera.LogReader
}

func main() {
	load.Main("github.com/transparency-dev/tessera", open)
}

func open(ctx context.Context, wanted load.Load) (load.Server, error) {
	driver, err := posix.New(ctx, posix.Config{Path: wanted.Directory})
	if err != nil {
		return nil, err
	}
	secret, _, err := note.GenerateKey(rand.Reader, "bench")
	if err != nil {
		return nil, err
	}
	signer, err := note.NewSigner(secret)
	if err != nil {
		return nil, err
	}
	waiting := uint(wanted.Clients * wanted.Depth * wanted.Batch)
	options := tessera.NewAppendOptions().
		WithCheckpointSigner(signer).
		WithCheckpointInterval(time.Second).
		WithBatching(waiting, maxAge).
		WithPushback(2 * waiting)
	appender, _, reader, err := tessera.NewAppender(ctx, driver, options)
	return &server{appender, reader}, err
}

func (s *server) Client(context.Context, int) (load.Append, error) {
	return s.add, nil
}

func (s *server) Stored(ctx context.Context) (int64, error) {
	size, err := s.reader.IntegratedSize(ctx)
	return int64(size), err
}

func (s *server) add(ctx context.Context, records [][]byte) error {
	futures := make([]tessera.IndexFuture, len(records))
	for i, record := range records {
		futures[i] = s.appender.Add(ctx, tessera.NewEntry(record))
	}
	for _, future := range futures {
		if _, err := future(); err != nil {
			return err
		}
	}
	return nil
}
