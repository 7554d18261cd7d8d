package main

import (
	"context"
	"encoding/json"

	"github.com/coder/websocket"
	"github.com/coder/websocket/wsjson"
)

// Frame is a notification or, when its type begins with "$", what the server says about the session.
type Frame struct {
	Type    string
	Payload json.RawMessage
	Seq     int
	Control `json:"-"`
}

// Control is the payload of a "$" frame, as far as a client needs it.
type Control struct {
	Epoch       string
	Cursor, To  int
	ReconnectMS int `json:"reconnect_ms"`
}

// receive waits for a frame. An error closes the socket.
func receive(ctx context.Context, socket *websocket.Conn) (frame Frame, err error) {
	if err = wsjson.Read(ctx, socket, &frame); err == nil && frame.Type[0] == '$' {
		err = json.Unmarshal(frame.Payload, &frame.Control)
	}
	return frame, err
}

// acknowledge says that everything up to that number is taken. An error shows at the next read.
func acknowledge(ctx context.Context, socket *websocket.Conn, seq int) {
	_ = wsjson.Write(ctx, socket, map[string]int{"ack": seq})
}
