package main

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"os"

	"github.com/coder/websocket"
)

// connect resumes where the query says. It shows the token or, when there is none, asks for another one first.
func connect(ctx context.Context, query url.Values, token *string) (*websocket.Conn, error) {
	if *token == "" {
		if err := ask(token); err != nil {
			return nil, err
		}
	}
	options := &websocket.DialOptions{HTTPHeader: http.Header{"Authorization": {"Bearer " + *token}}}
	socket, _, err := websocket.Dial(ctx, os.Args[1]+"/v1/connect?"+query.Encode(), options)
	if err != nil {
		*token = "" // it may be what was refused
		return nil, err
	}
	socket.SetReadLimit(-1) // frames are as large as the server lets payloads be
	return socket, nil
}

// ask gets a token: in a product from your own backend, which knows who is logged in.
func ask(token *string) error {
	answer, err := http.Get(os.Args[2])
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	return json.NewDecoder(answer.Body).Decode(&struct{ Token *string }{token})
}
