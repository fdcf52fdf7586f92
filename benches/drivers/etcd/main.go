// Command etcd drives etcd: a connection for each client, a key for each record, a transaction for each batch.
package main

import (
	"context"
	"fmt"
	"sync/atomic"

	etcd "go.etcd.io/etcd/client/v3"

	"kimberlite/benches/drivers/load"
)

// prefix is that of all keys: records/CLIENT/NUMBER.
const prefix = "records/"

type server struct {
	address string
	control *etcd.Client
}

func main() {
	load.Main("go.etcd.io/etcd/client/v3", open)
}

func open(_ context.Context, wanted load.Load) (load.Server, error) {
	control, err := connect(wanted.Address)
	return &server{wanted.Address, control}, err
}

func connect(address string) (*etcd.Client, error) {
	return etcd.New(etcd.Config{Endpoints: []string{"http://" + address}})
}

func (s *server) Client(_ context.Context, number int) (load.Append, error) {
	connection, err := connect(s.address)
	if err != nil {
		return nil, err
	}
	one := &client{connection: connection, number: number}
	return one.add, nil
}

func (s *server) Stored(ctx context.Context) (int64, error) {
	found, err := s.control.Get(ctx, prefix, etcd.WithPrefix(), etcd.WithCountOnly())
	if err != nil {
		return 0, err
	}
	return found.Count, nil
}

type client struct {
	connection *etcd.Client
	number     int
	records    atomic.Int64
}

func (c *client) add(ctx context.Context, records [][]byte) error {
	after := c.records.Add(int64(len(records)))
	puts := make([]etcd.Op, len(records))
	for i, record := range records {
		key := fmt.Sprintf("%s%06d/%012d", prefix, c.number, after-int64(len(records)-i))
		puts[i] = etcd.OpPut(key, string(record))
	}
	if len(puts) == 1 {
		_, err := c.connection.Do(ctx, puts[0])
		return err
	}
	done, err := c.connection.Txn(ctx).Then(puts...).Commit()
	if err == nil && !done.Succeeded {
		return fmt.Errorf("a transaction of %d did not happen", len(puts))
	}
	return err
}
