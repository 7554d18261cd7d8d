module example/notifier

go 1.23.0

require (
	github.com/go-resty/resty/v2 v2.17.2
	github.com/tidwall/gjson v1.20.0
	github.com/tmaxmax/go-sse v0.11.0
)

require (
	github.com/tidwall/match v1.1.1 // indirect
	github.com/tidwall/pretty v1.2.0 // indirect
	golang.org/x/net v0.43.0 // indirect
)
