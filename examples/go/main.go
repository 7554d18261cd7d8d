// go run . ws://127.0.0.1:8000 'http://127.0.0.1:8000/dev/token?user=101' [DEVICE]
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"net/http"
	"net/url"
	"os"
)

func main() {
	if len(os.Args) < 3 {
		log.Fatal("usage: SERVER TOKEN_URL [DEVICE]")
	}
	query := url.Values{}
	if len(os.Args) > 3 {
		query.Set("device", os.Args[3])
	}
	client := Client{
		Server:  os.Args[1],
		Query:   query,
		Token:   token,
		Notify:  func(n Frame) { fmt.Println(n.Type, string(n.Payload)) },
		Refetch: func() { fmt.Println("fetch everything") },
	}
	log.Fatal("closed for good: ", client.Follow(context.Background()))
}

// token comes, in a product, from your own backend, which knows who is logged in.
func token(ctx context.Context) (string, error) {
	request, err := http.NewRequestWithContext(ctx, "GET", os.Args[2], nil)
	if err != nil {
		return "", err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	var answer struct{ Token string }
	err = json.NewDecoder(response.Body).Decode(&answer)
	return answer.Token, err
}
