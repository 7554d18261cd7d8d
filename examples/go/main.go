// go run . ws://127.0.0.1:8000 'http://127.0.0.1:8000/dev/token?user=101' [DEVICE]
package main

import (
	"context"
	"fmt"
	"log"
	"math/rand/v2"
	"net/url"
	"os"
	"time"

	"github.com/coder/websocket"
)

func main() {
	ctx, query, token := context.Background(), url.Values{"device": os.Args[3:]}, ""
	for ceiling := 1500; ; ceiling = min(2*ceiling, 30_000) { // ms; longer each time, until $hello names it again
		wait, epoch := rand.N(ceiling), "" // random, so that not all clients come back at once
		socket, err := connect(ctx, query, &token)
		for err == nil {
			var frame Frame
			if frame, err = receive(ctx, socket); err != nil {
				break
			}
			switch {
			case frame.Type == "$hello":
				epoch, ceiling, wait = frame.Epoch, frame.ReconnectMS, rand.N(frame.ReconnectMS)
			case frame.Type == "$bye" && frame.ReconnectMS > 0:
				wait = frame.ReconnectMS // a time of our own
			case frame.Type[0] != '$':
				fmt.Println(frame.Type, string(frame.Payload))
			}
			if frame.Type == "$gap" || !query.Has("since") { // some will not come, or this is the start
				fmt.Println("fetch everything") // from your own API
				query.Set("since", fmt.Sprintf("%s-%d", epoch, frame.Cursor+frame.To))
			} else if frame.Seq > 0 { // transient ones have none
				query.Set("since", fmt.Sprintf("%s-%d", epoch, frame.Seq))
				acknowledge(ctx, socket, frame.Seq)
			}
		}
		if code := websocket.CloseStatus(err); code == 4003 || code == 4004 { // replaced, or a bug here: stay away
			log.Fatal("closed for good: ", err)
		} else if code == 4001 { // it has expired
			token = ""
		}
		time.Sleep(time.Duration(wait) * time.Millisecond)
	}
}
