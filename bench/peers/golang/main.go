// Graphql-go over pgx: one joined statement for each list of tasks, and no loaders.
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/golang-jwt/jwt"
	"github.com/graph-gophers/graphql-go"
	"github.com/graph-gophers/graphql-go/relay"
	"github.com/jackc/pgx/v4"
	"github.com/jackc/pgx/v4/pgxpool"
)

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

// pgx prepares each text once on each connection.
var pool *pgxpool.Pool

// Types

type DateTime struct{ graphql.Time }

func (DateTime) ImplementsGraphQLType(name string) bool { return name == "DateTime" }

type PageInfo struct{ EndCursor *string }

type User struct {
	ID       graphql.ID
	Username string
	FullName string
}

type Task struct {
	ID          graphql.ID
	Title       string
	Description *string
	Status      string
	Priority    string
	DueDate     *DateTime
	CreatedAt   DateTime
	UpdatedAt   DateTime
	Creator     *User
	Assignee    *User
}

type First struct{ First int32 }

func (u *User) CreatedTasks(ctx context.Context, page First) (*TaskConnection, error) {
	return readTasks(ctx, conditions{}.and("task.creator_id = %s", u.ID), "created_at", "DESC", nil, page.First)
}

func (u *User) AssignedTasks(ctx context.Context, page First) (*TaskConnection, error) {
	return readTasks(ctx, conditions{}.and("task.assignee_id = %s", u.ID), "created_at", "DESC", nil, page.First)
}

type TaskConnection struct {
	Nodes    []*Task
	matching conditions
}

func (c *TaskConnection) PageInfo() PageInfo {
	if len(c.Nodes) == 0 {
		return PageInfo{}
	}
	last := c.Nodes[len(c.Nodes)-1]
	cursor := last.CreatedAt.Format(time.RFC3339Nano) + " " + string(last.ID)
	return PageInfo{&cursor}
}

func (c *TaskConnection) TotalCount(ctx context.Context) (int32, error) {
	var count int32
	text := "SELECT count(*)::int FROM tasks task" + c.matching.where()
	return count, pool.QueryRow(ctx, text, c.matching.values...).Scan(&count)
}

type UserConnection struct{ Nodes []*User }

func (c *UserConnection) PageInfo() PageInfo {
	if len(c.Nodes) == 0 {
		return PageInfo{}
	}
	return PageInfo{&c.Nodes[len(c.Nodes)-1].Username}
}

type UserError struct{ Code, Message string }

type SetTaskStatusPayload struct {
	Task   *Task
	Errors []UserError
}

// Queries and the mutation

type Root struct{}

func (Root) Me(ctx context.Context) (*User, error) {
	text := "SELECT id::text, username, full_name FROM users WHERE id = $1"
	return scanUser(pool.QueryRow(ctx, text, ctx.Value(viewerKey)))
}

func (Root) Task(ctx context.Context, arguments struct{ ID graphql.ID }) (*Task, error) {
	return orNil(scanTask(pool.QueryRow(ctx, withPeople+" WHERE task.id = $1", string(arguments.ID))))
}

type TaskFilter struct {
	Assignee *struct{ ID struct{ Eq graphql.ID } }
	Status   *struct{ Eq string }
}

type TaskOrder struct{ Field, Direction string }

func (Root) Tasks(ctx context.Context, arguments struct {
	First   int32
	After   *string
	Filter  *TaskFilter
	OrderBy *[]TaskOrder
}) (*TaskConnection, error) {
	var matching conditions
	if filter := arguments.Filter; filter != nil {
		if filter.Assignee != nil {
			matching = matching.and("task.assignee_id = %s", filter.Assignee.ID.Eq)
		}
		if filter.Status != nil {
			matching = matching.and("task.status = %s", filter.Status.Eq)
		}
	}
	order := TaskOrder{"CREATED_AT", "DESC"}
	if arguments.OrderBy != nil && len(*arguments.OrderBy) > 0 {
		order = (*arguments.OrderBy)[0]
	}
	return readTasks(ctx, matching, strings.ToLower(order.Field), order.Direction, arguments.After, arguments.First)
}

func (Root) Users(ctx context.Context, arguments struct {
	First int32
	After *string
}) (*UserConnection, error) {
	after := ""
	if arguments.After != nil {
		after = *arguments.After
	}
	text := "SELECT id::text, username, full_name FROM users WHERE username_key > $1 ORDER BY username_key LIMIT $2"
	rows, err := pool.Query(ctx, text, after, arguments.First)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	users := make([]*User, 0, arguments.First)
	for rows.Next() {
		user, err := scanUser(rows)
		if err != nil {
			return nil, err
		}
		users = append(users, user)
	}
	return &UserConnection{users}, rows.Err()
}

const setStatus = `
	WITH task AS (
		UPDATE tasks SET status = $2::varchar, completed_at = CASE WHEN $2::varchar = 'COMPLETED' THEN now() END,
			version = version + 1, updated_at = now()
		WHERE id = $1 RETURNING *
	)` + columns + "FROM task" + people

func (Root) SetTaskStatus(ctx context.Context, arguments struct {
	Input struct {
		ID     graphql.ID
		Status string
	}
}) (*SetTaskStatusPayload, error) {
	input := arguments.Input
	task, err := orNil(scanTask(pool.QueryRow(ctx, setStatus, string(input.ID), input.Status)))
	if err != nil {
		return nil, err
	}
	payload := &SetTaskStatusPayload{Task: task, Errors: []UserError{}}
	if task == nil {
		payload.Errors = append(payload.Errors, UserError{"NOT_FOUND", "No such task"})
	}
	return payload, nil
}

// Statements

const columns = `
	SELECT task.id::text, title, description, status, priority, due_date, task.created_at, task.updated_at,
		creator.id::text, creator.username, creator.full_name, assignee.id::text, assignee.username, assignee.full_name `

const people = " JOIN users creator ON creator.id = creator_id LEFT JOIN users assignee ON assignee.id = assignee_id"

const withPeople = columns + "FROM tasks task" + people

type conditions struct {
	texts  []string
	values []interface{}
}

// The condition's %s stand for its values.
func (c conditions) and(condition string, values ...interface{}) conditions {
	var names []interface{}
	added := conditions{append([]string{}, c.texts...), append([]interface{}{}, c.values...)}
	for _, value := range values {
		if id, ok := value.(graphql.ID); ok {
			value = string(id)
		}
		added.values = append(added.values, value)
		names = append(names, fmt.Sprintf("$%d", len(added.values)))
	}
	added.texts = append(added.texts, fmt.Sprintf(condition, names...))
	return added
}

func (c conditions) where() string {
	if len(c.texts) == 0 {
		return ""
	}
	return " WHERE " + strings.Join(c.texts, " AND ")
}

// The order's field and direction are names of enums, so they can be part of the statement's text. So is the number of
// rows, because PostgreSQL would plan every execution anew if it were a parameter.
func readTasks(
	ctx context.Context, matching conditions, field, direction string, after *string, first int32,
) (*TaskConnection, error) {
	page := matching
	if after != nil {
		at, id, _ := strings.Cut(*after, " ")
		createdAt, err := time.Parse(time.RFC3339Nano, at)
		if err != nil {
			return nil, errors.New("after is not a cursor")
		}
		page = page.and("(task.created_at, task.id) < (%s, %s)", createdAt, id)
	}
	text := fmt.Sprintf("%s%s ORDER BY task.%s %s, task.id %s LIMIT %d",
		withPeople, page.where(), field, direction, direction, first)
	rows, err := pool.Query(ctx, text, page.values...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	tasks := make([]*Task, 0, first)
	for rows.Next() {
		task, err := scanTask(rows)
		if err != nil {
			return nil, err
		}
		tasks = append(tasks, task)
	}
	return &TaskConnection{tasks, matching}, rows.Err()
}

func scanUser(row pgx.Row) (*User, error) {
	var user User
	err := row.Scan((*string)(&user.ID), &user.Username, &user.FullName)
	return &user, err
}

func scanTask(row pgx.Row) (*Task, error) {
	task := Task{Creator: &User{}}
	var dueDate *time.Time
	var assigneeID, assigneeUsername, assigneeName *string
	err := row.Scan((*string)(&task.ID), &task.Title, &task.Description, &task.Status, &task.Priority,
		&dueDate, &task.CreatedAt.Time.Time, &task.UpdatedAt.Time.Time,
		(*string)(&task.Creator.ID), &task.Creator.Username, &task.Creator.FullName,
		&assigneeID, &assigneeUsername, &assigneeName)
	if dueDate != nil {
		task.DueDate = &DateTime{graphql.Time{Time: *dueDate}}
	}
	if assigneeID != nil {
		task.Assignee = &User{graphql.ID(*assigneeID), *assigneeUsername, *assigneeName}
	}
	return &task, err
}

func orNil(task *Task, err error) (*Task, error) {
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	return task, err
}

// The viewer

type contextKey struct{}

var viewerKey contextKey

type claims struct {
	Session string `json:"sid"`
	jwt.RegisteredClaims
}

const viewer = `
	SELECT users.id::text FROM users JOIN sessions ON sessions.user_id = users.id AND sessions.id = $2
	WHERE users.id = $1 AND users.is_active AND users.role = 'ADMIN'`

func viewerOf(request *http.Request, key []byte) (string, error) {
	var found claims
	token := strings.TrimPrefix(request.Header.Get("Authorization"), "Bearer ")
	parser := jwt.NewParser(jwt.WithValidMethods([]string{"HS256"}))
	keyOf := func(*jwt.Token) (interface{}, error) { return key, nil }
	if _, err := parser.ParseWithClaims(token, &found, keyOf); err != nil {
		return "", err
	}
	if !found.VerifyAudience("taskflow", true) || !found.VerifyIssuer("taskflow", true) {
		return "", errors.New("a token of another server")
	}
	var id string
	return id, pool.QueryRow(request.Context(), viewer, found.Subject, found.Session).Scan(&id)
}

func requireViewer(next http.Handler, key []byte) http.Handler {
	return http.HandlerFunc(func(response http.ResponseWriter, request *http.Request) {
		id, err := viewerOf(request, key)
		if err != nil {
			http.Error(response, "Could not validate credentials", http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(response, request.WithContext(context.WithValue(request.Context(), viewerKey, id)))
	})
}

func main() {
	size := os.Getenv("POOL_SIZE")
	settings := fmt.Sprintf("%s?pool_min_conns=%s&pool_max_conns=%s", os.Getenv("DATABASE_URL"), size, size)
	var err error
	if pool, err = pgxpool.Connect(context.Background(), settings); err != nil {
		log.Fatal(err)
	}
	parsed := graphql.MustParseSchema(schema, &Root{}, graphql.UseFieldResolvers(), graphql.MaxDepth(15))
	http.Handle("/graphql", requireViewer(&relay.Handler{Schema: parsed}, []byte(os.Getenv("SECRET_KEY"))))
	log.Fatal(http.ListenAndServe("127.0.0.1:"+os.Getenv("PORT"), nil))
}
