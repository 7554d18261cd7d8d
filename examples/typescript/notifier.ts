// A client for browsers and Node: receives a user's notifications, acknowledges them, and resumes after every break.

export interface Notification { type: string; payload: any; id: string; seq?: number; target: string; ts: string }
export interface Options {
  server: string; // e.g. "wss://notifier.example.com"
  getToken: () => Promise<string>; // from your backend; asked again when the last one is not good any more
  notify: (notification: Notification) => void; // each notification, in order
  refetch: () => void; // some may be missing: load everything from your own API
  device?: string; // this device then has a cursor of its own
}

/** Runs until the server does not want this client back; gives the close that says so. */
export async function follow({ server, getToken, notify, refetch, device }: Options): Promise<CloseEvent> {
  let since: string | undefined, token: string | undefined;
  let ceiling = 1500;
  while (true) {
    let wait: number | undefined, epoch: string | undefined;
    const query = new URLSearchParams({ ...(device && { device }), ...(since && { since }) });
    try {
      token ??= await getToken();
      // A browser cannot set headers on a WebSocket, so the token is offered as a subprotocol.
      const socket = new WebSocket(`${server}/v1/connect?${query}`, ["notifier.v1.json", `notifier.token.${token}`]);
      socket.onmessage = ({ data }) => {
        const frame = JSON.parse(data), { type, payload } = frame;
        if (type === "$hello") {
          ({ epoch, reconnect_ms: ceiling } = payload);
          if (!since) { // the start
            since = `${epoch}-${payload.cursor}`;
            refetch();
          }
        } else if (type === "$gap") { // some will not come, whatever the reason
          since = `${epoch}-${payload.to}`;
          refetch();
        } else if (type === "$bye") wait = payload.reconnect_ms; // a time of our own: not all come back at once
        else if (!type.startsWith("$")) notify(frame);
        if (!frame.seq) return; // a control frame, or a transient notification
        since = `${epoch}-${frame.seq}`;
        socket.send(JSON.stringify({ ack: frame.seq }));
      };
      const close = await new Promise<CloseEvent>((ended) => (socket.onclose = ended));
      // Replaced by another session, or a bug in this code: connecting again would end the same way.
      if (close.code === 4003 || close.code === 4004) return close;
      // It has expired, or may be why there was no connection: browsers do not say.
      if (close.code === 4001 || !epoch) token = undefined;
    } catch (error) { console.warn("no token:", error); }
    await new Promise((resume) => setTimeout(resume, wait ?? Math.random() * ceiling));
    ceiling = Math.min(ceiling * 2, 30_000); // until a $hello names it again
  }
}
