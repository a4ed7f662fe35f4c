// Mercurius with its compiler and its loaders, as its documentation has it, over `pg`.
// With --with-event, setTaskStatus also writes an event and notifies, in the same statement.
import fastifyJwt from '@fastify/jwt'
import Fastify from 'fastify'
import mercurius from 'mercurius'
import pg from 'pg'

const { DATABASE_URL, SECRET_KEY, PORT, POOL_SIZE } = process.env

// As text and not as a Date, which has no microseconds and costs more.
pg.types.setTypeParser(pg.types.builtins.TIMESTAMPTZ, (text) => text.replace(' ', 'T') + ':00')

const pool = new pg.Pool({
  connectionString: DATABASE_URL,
  options: '-c TimeZone=UTC',
  min: Number(POOL_SIZE),
  max: Number(POOL_SIZE)
})

async function query (name, text, values) {
  return (await pool.query({ name, text, values })).rows
}

const schema = `
  scalar DateTime
  enum TaskStatus { PENDING IN_PROGRESS COMPLETED }
  enum TaskPriority { LOW MEDIUM HIGH }
  enum TaskOrderField { CREATED_AT UPDATED_AT }
  enum OrderDirection { ASC DESC }
  input IDFilter { eq: ID! }
  input UserFilter { id: IDFilter! }
  input TaskStatusFilter { eq: TaskStatus! }
  input TaskFilter { assignee: UserFilter status: TaskStatusFilter }
  input TaskOrder { field: TaskOrderField! direction: OrderDirection! = ASC }
  input SetTaskStatusInput { id: ID! status: TaskStatus! }

  type PageInfo { endCursor: String }
  type User {
    id: ID!
    username: String!
    fullName: String!
    createdTasks(first: Int!): TaskConnection!
    assignedTasks(first: Int!): TaskConnection!
  }
  type Task {
    id: ID!
    title: String!
    description: String
    status: TaskStatus!
    priority: TaskPriority!
    dueDate: DateTime
    createdAt: DateTime!
    updatedAt: DateTime!
    creator: User!
    assignee: User
  }
  type TaskConnection { nodes: [Task!]! pageInfo: PageInfo! totalCount: Int! }
  type UserConnection { nodes: [User!]! pageInfo: PageInfo! }
  type UserError { code: String! message: String! }
  type SetTaskStatusPayload { task: Task errors: [UserError!]! }

  type Query {
    me: User!
    task(id: ID!): Task
    tasks(first: Int!, after: String, filter: TaskFilter, orderBy: [TaskOrder!]): TaskConnection!
    users(first: Int!, after: String): UserConnection!
  }
  type Mutation { setTaskStatus(input: SetTaskStatusInput!): SetTaskStatusPayload! }
`

const TASK = `id, title, description, status, priority, due_date AS "dueDate", created_at AS "createdAt",
  updated_at AS "updatedAt", creator_id AS "creatorId", assignee_id AS "assigneeId"`
const USER = 'id, username, full_name AS "fullName"'

const SET_STATUS = `
  UPDATE tasks SET status = $2::varchar, completed_at = CASE WHEN $2::varchar = 'COMPLETED' THEN now() END,
    version = version + 1, updated_at = now()
  WHERE id = $1`

const RECORDED = `id, title, description, status, priority, category, due_date, completed_at, creator_id, assignee_id,
  version, created_at, updated_at`

const SET_STATUS_WITH_EVENT = `
  WITH before AS (SELECT ${RECORDED} FROM tasks WHERE id = $1 FOR UPDATE),
  after AS (${SET_STATUS} AND EXISTS (SELECT FROM before) RETURNING ${RECORDED}),
  event AS (
    INSERT INTO peer_events
      (subject_type, subject_id, kind, actor_id, audience, changed_fields, before, after, occurred_at)
    SELECT 'TASK', after.id, 'UPDATED', $3,
      array_remove(ARRAY[after.creator_id, nullif(after.assignee_id, after.creator_id)], NULL),
      'STATUS', row_to_json(before), row_to_json(after), now()
    FROM before, after RETURNING id AS event_id
  )
  SELECT ${TASK}, pg_notify('events', event_id::text) FROM after, event`

const withEvent = process.argv.includes('--with-event')

const resolvers = {
  Query: {
    async me (_root, _args, { viewer }) {
      return (await query('user', `SELECT ${USER} FROM users WHERE id = $1`, [viewer.id]))[0]
    },

    async task (_root, { id }) {
      return (await query('task', `SELECT ${TASK} FROM tasks WHERE id = $1`, [id]))[0]
    },

    async tasks (_root, { first, after, filter, orderBy }) {
      const values = []
      const conditions = []
      if (filter?.assignee) conditions.push(`assignee_id = $${values.push(filter.assignee.id.eq)}`)
      if (filter?.status) conditions.push(`status = $${values.push(filter.status.eq)}`)
      const matching = { conditions: [...conditions], values: [...values] }
      if (after) {
        const [createdAt, id] = after.split(' ')
        conditions.push(`(created_at, id) < ($${values.push(createdAt)}, $${values.push(id)})`)
      }
      const { field, direction } = orderBy?.[0] ?? { field: 'CREATED_AT', direction: 'DESC' }
      const text = `SELECT ${TASK} FROM tasks ${where(conditions)}
        ORDER BY ${field.toLowerCase()} ${direction}, id ${direction} LIMIT $${values.push(first)}`
      return { nodes: await query(nameOf(text), text, values), matching }
    },

    async users (_root, { first, after }) {
      const text = `SELECT ${USER} FROM users WHERE username_key > $1 ORDER BY username_key LIMIT $2`
      return { nodes: await query('users', text, [after ?? '', first]) }
    }
  },

  TaskConnection: {
    async totalCount ({ matching }) {
      const text = `SELECT count(*)::int AS count FROM tasks ${where(matching.conditions)}`
      return (await query(nameOf(text), text, matching.values))[0].count
    },

    pageInfo ({ nodes }) {
      const last = nodes.at(-1)
      return { endCursor: last ? `${last.createdAt} ${last.id}` : null }
    }
  },

  UserConnection: {
    pageInfo ({ nodes }) {
      return { endCursor: nodes.at(-1)?.username ?? null }
    }
  },

  Mutation: {
    async setTaskStatus (_root, { input }, { viewer }) {
      const [task] = withEvent
        ? await query('set status', SET_STATUS_WITH_EVENT, [input.id, input.status, viewer.id])
        : await query('set status', `${SET_STATUS} RETURNING ${TASK}`, [input.id, input.status])
      return task ? { task, errors: [] } : { task: null, errors: [{ code: 'NOT_FOUND', message: 'No such task' }] }
    }
  }
}

const loaders = {
  Task: {
    creator: uncached((tasks) => usersById(tasks.map((task) => task.creatorId))),
    assignee: uncached((tasks) => usersById(tasks.map((task) => task.assigneeId)))
  },
  User: {
    createdTasks: uncached((users, params) => newestTasks('creator_id', 'creatorId', users, params)),
    assignedTasks: uncached((users, params) => newestTasks('assignee_id', 'assigneeId', users, params))
  }
}

// Without the cache, whose key is the whole object as JSON.
function uncached (load) {
  const loader = (queries) => load(queries.map(({ obj }) => obj), queries.map(({ params }) => params))
  return { loader, opts: { cache: false } }
}

async function usersById (ids) {
  const wanted = [...new Set(ids)].filter((id) => id !== null)
  const users = await query('users by id', `SELECT ${USER} FROM users WHERE id = ANY($1)`, [wanted])
  const userById = new Map(users.map((user) => [user.id, user]))
  return ids.map((id) => userById.get(id) ?? null)
}

async function newestTasks (column, key, users, params) {
  const text = `
    SELECT task.* FROM unnest($1::uuid[]) AS person (id) CROSS JOIN LATERAL (
      SELECT ${TASK} FROM tasks WHERE ${column} = person.id ORDER BY created_at DESC, tasks.id DESC LIMIT $2
    ) task ORDER BY "createdAt" DESC, id DESC`
  const tasksByUser = new Map(users.map(({ id }) => [id, []]))
  const most = Math.max(...params.map(({ first }) => first))
  for (const task of await query(nameOf(text), text, [[...tasksByUser.keys()], most])) {
    tasksByUser.get(task[key]).push(task)
  }
  return users.map(({ id }, place) => ({ nodes: tasksByUser.get(id).slice(0, params[place].first) }))
}

function where (conditions) {
  return conditions.length ? `WHERE ${conditions.join(' AND ')}` : ''
}

// A name for each text, under which each connection prepares it once.
const names = new Map()
function nameOf (text) {
  if (!names.has(text)) names.set(text, `statement ${names.size}`)
  return names.get(text)
}

const VIEWER = `
  SELECT users.id, users.role FROM users JOIN sessions ON sessions.user_id = users.id AND sessions.id = $2
  WHERE users.id = $1 AND users.is_active AND users.role = 'ADMIN'`

async function requireViewer (request) {
  const claims = await request.jwtVerify()
  const [viewer] = await query('viewer', VIEWER, [claims.sub, claims.sid])
  if (!viewer) throw new mercurius.ErrorWithProps('Could not validate credentials', undefined, 401)
  return viewer
}

const app = Fastify()
app.register(fastifyJwt, {
  secret: SECRET_KEY,
  verify: { algorithms: ['HS256'], allowedAud: 'taskflow', allowedIss: 'taskflow' }
})
app.register(mercurius, {
  schema,
  resolvers,
  loaders,
  jit: 1,
  queryDepth: 15,
  context: async (request) => ({ viewer: await requireViewer(request) })
})
await app.listen({ port: Number(PORT), host: '127.0.0.1' })
