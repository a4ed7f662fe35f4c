// The WebSocket that `graphql-ws.mjs`, `urql.mjs` and `apollo.mjs` share: one for all subscriptions of a page.

import { createClient } from 'graphql-ws'

export function makeSocket({ url, session, patience = 10_000 }) {
  let timer
  const giveUpLater = () => {
    clearTimeout(timer)
    timer = setTimeout(() => socket.terminate(), patience)
  }
  const socket = createClient({
    url: url.replace(/^http/, 'ws'),
    // Asked at every connection, so that it is a token of now.
    connectionParams: async () => ({ Authorization: `Bearer ${await session.token()}` }),
    // `followTasks` comes back with the last cursor. graphql-ws would come back with the first one.
    retryAttempts: 0,
    // Between the list and the stream the socket stays open.
    lazyCloseTimeout: 1000,
    // A network that is gone says nothing: ask, and leave a socket that does not answer.
    keepAlive: patience,
    on: {
      connecting: giveUpLater,
      connected: () => clearTimeout(timer),
      ping: (isFromServer) => isFromServer || giveUpLater(),
      pong: (isFromServer) => isFromServer && clearTimeout(timer),
      closed: ({ code }) => {
        clearTimeout(timer)
        if (code === 4403) session.expired()
      },
    },
  })
  return socket
}
