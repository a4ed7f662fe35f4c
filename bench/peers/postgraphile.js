// PostGraphile 5 on the tables as they are, as its pages on production, on security and on smart tags have it.
// With --with-event, setTaskStatus calls the function in events.sql, which also writes an event and notifies.
import { createServer } from 'node:http'
import { PgSimplifyInflectionPreset } from '@graphile/simplify-inflection'
import jwt from 'jsonwebtoken'
import pg from 'pg'
import { postgraphile } from 'postgraphile'
import { makePgService } from 'postgraphile/adaptors/pg'
import { context, object, SafeError } from 'postgraphile/grafast'
import { grafserv } from 'postgraphile/grafserv/node'
import { PostGraphileAmberPreset } from 'postgraphile/presets/amber'
import { extendSchema, gql, jsonPgSmartTags } from 'postgraphile/utils'

const { DATABASE_URL, SECRET_KEY, PORT, POOL_SIZE } = process.env

const pool = new pg.Pool({
  connectionString: DATABASE_URL,
  statement_timeout: 30_000,
  min: Number(POOL_SIZE),
  max: Number(POOL_SIZE)
})
pool.on('error', () => {})

const hidden = { tags: { behavior: '-*' } }
const filtered = { tags: { behavior: '+attribute:filterBy' } }
const SmartTags = jsonPgSmartTags({
  version: 1,
  config: {
    class: {
      alembic_version: hidden,
      sessions: hidden,
      stream_state: hidden,
      events: hidden,
      peer_events: hidden,
      // The view for servers of the previous release.
      task_events: hidden,
      tasks: { attribute: { status: filtered } },
      users: { attribute: { password_hash: hidden } }
    },
    procedure: { set_task_status: hidden }
  }
})

const Me = extendSchema((build) => ({
  typeDefs: gql`
    extend type Query {
      me: User
    }
  `,
  objects: {
    Query: {
      plans: {
        me () {
          return build.pgResources.users.get({ id: context().get('viewerId') })
        }
      }
    }
  }
}))

// The function itself is hidden: the actor is one of its arguments, and no choice of the client.
const SetTaskStatus = extendSchema((build) => ({
  typeDefs: gql`
    input SetTaskStatusInput { rowId: UUID! status: String! }
    type SetTaskStatusPayload { task: Task }
    extend type Mutation { setTaskStatus(input: SetTaskStatusInput!): SetTaskStatusPayload }
  `,
  objects: {
    Mutation: {
      plans: {
        setTaskStatus (_root, { $input: { $rowId, $status } }) {
          const values = [$rowId, $status, context().get('viewerId')]
          const $task = build.pgResources.set_task_status.execute(values.map((step) => ({ step })), 'mutation')
          return object({ task: $task })
        }
      }
    }
  }
}))

const VIEWER = `
  SELECT 1 FROM users JOIN sessions ON sessions.user_id = users.id AND sessions.id = $2
  WHERE users.id = $1 AND users.is_active AND users.role = 'ADMIN'`

// Here for ADMINs, who see everything, and so without the row-level security that others would need: its settings
// make a transaction of every request, which costs three more round trips.
async function requireViewer (request) {
  const token = request.headers.authorization?.replace(/^Bearer /, '')
  const claims = verify(token)
  const { rowCount } = await pool.query({ name: 'viewer', text: VIEWER, values: [claims.sub, claims.sid] })
  if (rowCount === 0) throw new SafeError('Could not validate credentials')
  return claims.sub
}

function verify (token) {
  try {
    return jwt.verify(token, SECRET_KEY, { algorithms: ['HS256'], audience: 'taskflow', issuer: 'taskflow' })
  } catch (error) {
    throw new SafeError('Could not validate credentials', undefined, { cause: error })
  }
}

const preset = {
  extends: [PostGraphileAmberPreset, PgSimplifyInflectionPreset],
  plugins: process.argv.includes('--with-event') ? [SmartTags, Me, SetTaskStatus] : [SmartTags, Me],
  pgServices: [makePgService({ pool, schemas: ['public'] })],
  grafast: {
    explain: false,
    timeouts: { planning: 500, execution: 30_000 },
    context: async ({ node }) => ({ viewerId: await requireViewer(node.req) })
  },
  grafserv: { graphiql: false, websockets: false }
}

const server = createServer()
await postgraphile(preset).createServ(grafserv).addTo(server)
server.listen(Number(PORT), '127.0.0.1')
