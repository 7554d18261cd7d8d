package main

import (
	"context"
	"math/rand/v2"
	"net/url"
	"time"

	"github.com/coder/websocket"
)

// Client receives a user's notifications, acknowledges them, and resumes where it was after every break.
type Client struct {
	Server  string                                // e.g. "wss://notifier.example.com"
	Query   url.Values                            // with a "device", that has a cursor of its own
	Token   func(context.Context) (string, error) // asked again when the last one is not good any more
	Notify  func(Frame)                           // each notification, in order
	Refetch func()                                // some may be missing: load everything from your own API

	token, epoch  string
	seq           uint64
	ceiling, wait time.Duration
}

// Follow runs until ctx ends or the server does not want this client back.
func (c *Client) Follow(ctx context.Context) error {
	// Longer each time, until a $hello names the time again.
	for c.ceiling = 1500 * time.Millisecond; ; c.ceiling = min(2*c.ceiling, 30*time.Second) {
		c.wait = 0
		err := c.session(ctx)
		switch websocket.CloseStatus(err) {
		case 4001: // the token has expired
			c.token = ""
		case 4003, 4004: // replaced, or a bug here: connecting again would end the same way
			return err
		}
		if c.wait == 0 {
			c.wait = rand.N(c.ceiling)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(c.wait):
		}
	}
}
