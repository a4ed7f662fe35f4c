// Asks twice with a client that names its documents by their hashes first, and writes what came of it and what was
// sent: one JSON object.
//
//   node persisted.mjs '{"client": "apollo", "url": "http://…/graphql", "get": false}'

import { createRequire } from 'node:module'

const require = createRequire(new URL('../../docs/recipes/', import.meta.url))
const given = JSON.parse(process.argv[2])
const { createHash } = await import('node:crypto')

const FIRST = 'query First { serverInfo { name } }'
const SECOND = 'query Second { serverInfo { name __typename } }'
const sent = []

async function remembering(url, options = {}) {
  const body = options.body ? JSON.parse(options.body) : Object.fromEntries(new URL(url).searchParams)
  sent.push({ method: options.method ?? 'GET', hash: 'extensions' in body, text: 'query' in body })
  return fetch(url, options)
}

const CLIENTS = {
  async apollo() {
    const { ApolloClient, HttpLink, InMemoryCache, gql } = require('@apollo/client')
    const { PersistedQueryLink } = require('@apollo/client/link/persisted-queries')
    const sha256 = (text) => createHash('sha256').update(text).digest('hex')
    const persisted = new PersistedQueryLink({ sha256, useGETForHashedQueries: given.get })
    const link = persisted.concat(new HttpLink({ uri: given.url, fetch: remembering }))
    const client = new ApolloClient({ cache: new InMemoryCache(), link })
    return async (query) => (await client.query({ query: gql(query), fetchPolicy: 'network-only' })).data
  },

  async urql() {
    const { Client, fetchExchange } = require('@urql/core')
    const { persistedExchange } = require('@urql/exchange-persisted')
    const client = new Client({
      url: given.url,
      fetch: remembering,
      preferGetMethod: false,
      exchanges: [persistedExchange({ preferGetForPersistedQueries: given.get }), fetchExchange],
    })
    return async (query) => {
      const { data, error } = await client.query(query, {})
      if (error) throw error
      return data
    }
  },
}

const ask = await CLIENTS[given.client]()
const answers = [await ask(FIRST), await ask(SECOND)]
console.log(JSON.stringify({ names: answers.map((data) => data.serverInfo.name), sent }))
process.exit(0)
