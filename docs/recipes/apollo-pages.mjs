// Apollo Client's cache, with the pages of a list merged into one list. Select `edges`: of `nodes` it keeps the last page.
//
//   const client = makeClient({ url, session, cache: makeCache() })

import { InMemoryCache } from '@apollo/client'
import { relayStylePagination } from '@apollo/client/utilities'

export const makeCache = () =>
  new InMemoryCache({
    typePolicies: { Query: { fields: { tasks: relayStylePagination(['filter', 'orderBy']) } } },
  })
