// Command kafka drives Kafka: a producer and a partition for each client, a batch of records for each of ours, which
// the partition takes as one. The broker syncs partitions side by side, so that fewer are slower.
package main

import (
	"context"
	"fmt"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"kimberlite/benches/drivers/load"
)

const topic = "log"

type server struct {
	address string
	control *kadm.Client
}

func main() {
	load.Main("github.com/twmb/franz-go", open)
}

func open(ctx context.Context, wanted load.Load) (load.Server, error) {
	connection, err := kgo.NewClient(kgo.SeedBrokers(wanted.Address))
	if err != nil {
		return nil, err
	}
	control := kadm.NewClient(connection)
	made, err := control.CreateTopic(ctx, int32(wanted.Clients), 1, nil, topic)
	if err == nil {
		err = made.Err
	}
	return &server{wanted.Address, control}, err
}

func (s *server) Client(ctx context.Context, number int) (load.Append, error) {
	producer, err := kgo.NewClient(
		kgo.SeedBrokers(s.address),
		kgo.RequiredAcks(kgo.AllISRAcks()),
		kgo.ProducerBatchCompression(kgo.NoCompression()),
		kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.ProducerLinger(0),
		kgo.DefaultProduceTopic(topic),
	)
	if err != nil {
		return nil, err
	}
	one := &client{producer, int32(number)}
	return one.add, producer.Ping(ctx)
}

func (s *server) Stored(ctx context.Context) (int64, error) {
	ends, err := s.control.ListEndOffsets(ctx, topic)
	if err != nil {
		return 0, err
	}
	var stored int64
	ends.Each(func(end kadm.ListedOffset) {
		if end.Err != nil {
			err = fmt.Errorf("partition %d: %w", end.Partition, end.Err)
		}
		stored += end.Offset
	})
	return stored, err
}

type client struct {
	producer  *kgo.Client
	partition int32
}

func (c *client) add(ctx context.Context, records [][]byte) error {
	messages := make([]*kgo.Record, len(records))
	for i, record := range records {
		messages[i] = &kgo.Record{Partition: c.partition, Value: record}
	}
	return c.producer.ProduceSync(ctx, messages...).FirstErr()
}
