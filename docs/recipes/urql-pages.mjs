// urql's normalised cache, with the pages of a list merged into one list.
//
//   const client = makeClient({ url, session, cache: makeCache() })

import { cacheExchange } from '@urql/exchange-graphcache'
import { relayPagination } from '@urql/exchange-graphcache/extras'

export const makeCache = () => cacheExchange({ resolvers: { Query: { tasks: relayPagination() } } })
