// Command nats drives JetStream: a stream and a connection for each client.
//
// A batch is an atomic batch, whose messages are only counted as stored when its last one is acknowledged; the server
// writes it with one sync. A lone record is a publish.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"sync/atomic"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"kimberlite/benches/drivers/load"
)

type server struct {
	address string
	size    int
	control jetstream.JetStream
}

func main() {
	load.Main("github.com/nats-io/nats.go", open)
}

func open(_ context.Context, wanted load.Load) (load.Server, error) {
	connection, err := nats.Connect(wanted.Address)
	if err != nil {
		return nil, err
	}
	control, err := jetstream.New(connection)
	return &server{address: wanted.Address, size: wanted.Batch, control: control}, err
}

func (s *server) Client(ctx context.Context, number int) (load.Append, error) {
	name := "log-" + strconv.Itoa(number)
	_, err := s.control.CreateStream(ctx, jetstream.StreamConfig{
		Name:               name,
		Subjects:           []string{name},
		Storage:            jetstream.FileStorage,
		Replicas:           1,
		AllowAtomicPublish: true,
		AllowDirect:        true,
	})
	if err != nil {
		return nil, err
	}
	connection, err := nats.Connect(s.address)
	if err != nil {
		return nil, err
	}
	one := &client{connection: connection, subject: name}
	return one.add, nil
}

func (s *server) Stored(ctx context.Context) (int64, error) {
	var stored int64
	streams := s.control.ListStreams(ctx)
	for stream := range streams.Info() {
		stored += int64(stream.State.Msgs)
	}
	return stored, streams.Err()
}

type client struct {
	connection *nats.Conn
	subject    string
	batches    atomic.Int64
}

func (c *client) add(ctx context.Context, records [][]byte) error {
	last := len(records)
	if last == 1 {
		return c.commit(ctx, &nats.Msg{Subject: c.subject, Data: records[0]}, 0)
	}
	id := strconv.FormatInt(c.batches.Add(1), 10)
	for i, record := range records {
		header := nats.Header{"Nats-Batch-Id": {id}, "Nats-Batch-Sequence": {strconv.Itoa(i + 1)}}
		message := &nats.Msg{Subject: c.subject, Header: header, Data: record}
		if i+1 == last {
			header.Set("Nats-Batch-Commit", "1")
			return c.commit(ctx, message, last)
		}
		if err := c.connection.PublishMsg(message); err != nil {
			return err
		}
	}
	return errors.New("a batch without records")
}

// commit waits for the acknowledgement, which for a batch says how many there were.
func (c *client) commit(ctx context.Context, message *nats.Msg, count int) error {
	answer, err := c.connection.RequestMsgWithContext(ctx, message)
	if err != nil {
		return err
	}
	var said struct {
		Sequence uint64 `json:"seq"`
		Count    int    `json:"count"`
		Error    *struct {
			Description string `json:"description"`
		} `json:"error"`
	}
	if err := json.Unmarshal(answer.Data, &said); err != nil {
		return err
	}
	if said.Error != nil {
		return errors.New(said.Error.Description)
	}
	if said.Sequence == 0 || said.Count != count {
		return fmt.Errorf("a batch of %d is acknowledged with %s", count, answer.Data)
	}
	return nil
}
