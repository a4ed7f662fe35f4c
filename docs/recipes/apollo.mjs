// Apollo Client 4: queries and mutations over HTTP, subscriptions over a WebSocket.
//
//   const client = makeClient({ url, session })
//   const stop = followTasks({ ...overApollo(client), session, onTasks, onChange: intoCache(client) })

import { ApolloClient, ApolloLink, HttpLink, InMemoryCache, gql } from '@apollo/client'
import { SetContextLink } from '@apollo/client/link/context'
import { GraphQLWsLink } from '@apollo/client/link/subscriptions'
import { TASK } from './follow.mjs'
import { makeSocket } from './socket.mjs'

// `cache`: one that merges pages is in `apollo-pages.mjs`.
export function makeClient({ url, session, patience, cache = new InMemoryCache() }) {
  const link = ApolloLink.split(
    ({ operationType }) => operationType === 'subscription',
    new GraphQLWsLink(makeSocket({ url, session, patience })),
    makeHttpLink({ url, session }),
  )
  return new ApolloClient({ cache, link })
}

// Subscriptions too, as multipart responses. It does not notice a network that is gone without a word.
export const makeHttpClient = ({ url, session }) =>
  new ApolloClient({ cache: new InMemoryCache(), link: makeHttpLink({ url, session }) })

function makeHttpLink({ url, session }) {
  const authorized = new SetContextLink(async ({ headers }) => ({
    headers: { ...headers, Authorization: `Bearer ${await session.token()}` },
  }))
  return authorized.concat(new HttpLink({ uri: url }))
}

export const overApollo = (client) => ({
  async query(query, variables) {
    const { data } = await client.query({ query: gql(query), variables, fetchPolicy: 'network-only' })
    return data
  },
  subscribe(query, variables, sink) {
    // Into the cache goes only what `followTasks` finds to be new: a change that comes late would put back an old task.
    const results = client.subscribe({ query: gql(query), variables, fetchPolicy: 'no-cache' })
    const hear = ({ data, error }) => (error ? sink.error(error) : sink.next({ data }))
    const subscription = results.subscribe({ next: hear, error: sink.error, complete: sink.complete })
    return () => subscription.unsubscribe()
  },
})

const VERSION = gql`fragment Version on Task { version }`
const WHOLE = gql`fragment Whole on Task { ${TASK} }`

// For `onChange`: whatever else on the page shows the task shows it as it is now.
export const intoCache = ({ cache }) => ({ kind, taskId, task }) => {
  const id = cache.identify({ __typename: 'Task', id: taskId })
  // The answer to a mutation of your own may have been here before its change.
  const isKnown = task && cache.readFragment({ id, fragment: VERSION })?.version >= task.version
  if (task && !isKnown) cache.writeFragment({ id, fragment: WHOLE, data: task })
  if (kind === 'DELETED') cache.evict({ id })
}
