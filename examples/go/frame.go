package main

import (
	"encoding/json"
	"time"
)

// Frame is a notification or, when its type begins with "$", what the server says about the session.
type Frame struct {
	Type    string
	Payload json.RawMessage
	Seq     uint64
}

// control takes what the server says about the session.
func (c *Client) control(frame Frame) {
	var said struct {
		Epoch, Reason string
		Cursor, To    uint64
		ReconnectMS   int64 `json:"reconnect_ms"`
	}
	if json.Unmarshal(frame.Payload, &said) != nil {
		return
	}
	wait := time.Duration(said.ReconnectMS) * time.Millisecond
	switch frame.Type {
	case "$hello":
		c.ceiling = wait
		if c.epoch != said.Epoch { // the first time, or the log has begun anew
			c.epoch, c.seq = said.Epoch, said.Cursor
			c.Refetch()
		}
	case "$gap":
		c.seq = said.To
		if said.Reason != "epoch" { // which $hello has said already
			c.Refetch()
		}
	case "$bye":
		c.wait = wait // a time of our own, so that not all come back at once
	}
}
