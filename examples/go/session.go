package main

import (
	"context"
	"fmt"
	"net/http"
	"strings"

	"github.com/coder/websocket"
	"github.com/coder/websocket/wsjson"
)

// session is one connection, from where the last one ended; always ends with an error.
func (c *Client) session(ctx context.Context) (err error) {
	if c.token == "" {
		if c.token, err = c.Token(ctx); err != nil {
			return err
		}
	}
	options := &websocket.DialOptions{HTTPHeader: http.Header{"Authorization": {"Bearer " + c.token}}}
	socket, _, err := websocket.Dial(ctx, c.Server+"/v1/connect?"+c.Query.Encode(), options)
	if err != nil {
		c.token = "" // it may be what was refused
		return err
	}
	defer socket.CloseNow()
	socket.SetReadLimit(-1) // frames are as large as the server lets payloads be
	for {
		var frame Frame
		if err = wsjson.Read(ctx, socket, &frame); err != nil {
			return err
		}
		if strings.HasPrefix(frame.Type, "$") {
			c.control(frame)
		} else {
			c.Notify(frame)
		}
		if frame.Seq > 0 { // transient ones have none
			c.seq = frame.Seq
			_ = wsjson.Write(ctx, socket, map[string]uint64{"ack": c.seq}) // an error shows at the next read
		}
		c.Query.Set("since", fmt.Sprintf("%s-%d", c.epoch, c.seq))
	}
}
