// go run . http://127.0.0.1:8000 'http://127.0.0.1:8000/dev/token?user=101' DEVICE
package main

import (
	"cmp"
	"fmt"
	"log"
	"math/rand/v2"
	"os"
	"time"

	"github.com/go-resty/resty/v2"
	"github.com/tidwall/gjson"
	"github.com/tmaxmax/go-sse"
)

func main() {
	client, token, since, ceiling := resty.New().SetBaseURL(os.Args[1]), "", "", int64(1500) // ms
	ask := func() { _, _ = client.R().SetResult(&struct{ Token *string }{&token}).Get(os.Args[2]) }
	for ask(); ; ceiling = min(2*ceiling, 30_000) { // longer each time, until $hello names it again
		said := map[string]gjson.Result{} // the last frame by the event's name; only what is about the session has one
		stream, err := client.R().SetHeader("Authorization", "Bearer "+token).SetHeader("Last-Event-ID", since).
			SetQueryParam("device", os.Args[3]).SetDoNotParseResponse(true).Get("/v1/stream")
		if err == nil {
			for event := range sse.Read(stream.RawBody(), &sse.ReadConfig{MaxEventSize: 1 << 30}) {
				said[event.Type] = gjson.Get(event.Data, "@valid")
				frame, hello := said[event.Type], said["$hello"].Get("payload")
				ceiling = cmp.Or(hello.Get("reconnect_ms").Int(), ceiling)
				if event.Type == "" && frame.Exists() { // no frame is where the stream breaks off
					fmt.Println(frame.Get("type"), frame.Get("payload").Raw)
				}
				if event.Type == "$gap" || event.Type == "$hello" && since == "" { // some will not come, or this is the start
					fmt.Println("fetch everything") // from your own API
					since = fmt.Sprintf("%s-%s%s", hello.Get("epoch"), frame.Get("payload.to"), frame.Get("payload.cursor"))
				} else if seq := frame.Get("seq"); seq.Exists() { // transient ones have none
					since = event.LastEventID
					_, _ = client.R().SetBody(map[string]any{"ack": seq.Int()}).Post("/v1/sessions/" + hello.Get("session").Str + "/ack")
				}
			}
		}
		switch code := said["$bye"].Get("payload.code").Int(); {
		case code == 4003 || code == 4004: // replaced, or a bug here: stay away
			log.Fatal("closed for good: ", said["$bye"].Get("payload"))
		case code == 4001 || err == nil && stream.StatusCode() == 401: // expired, or refused
			ask() // in a product: your own backend, which knows who is logged in
		} // and come back at a time of our own, not all clients at once
		time.Sleep(time.Duration(cmp.Or(said["$bye"].Get("payload.reconnect_ms").Int(), rand.N(ceiling))) * time.Millisecond)
	}
}
