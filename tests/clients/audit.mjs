// What the graphql-http package says of a server, as JSON: node audit.mjs http://…/graphql

import { createRequire } from 'node:module'

const { auditServer } = createRequire(new URL('../../docs/recipes/', import.meta.url))('graphql-http')

const results = await auditServer({ url: process.argv[2] })
const facts = results.map(({ id, name, status, reason }) => ({ id, name, status, reason }))
process.stdout.write(JSON.stringify(facts))
