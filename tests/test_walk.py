"""The evaluator's walk with an ordinary client, from registering to deleting a task."""

from __future__ import annotations

from tests.support.client import CREATE_TASK, REGISTER, Api


async def test_register_sign_in_and_create_read_update_and_delete_a_task(api: Api) -> None:
    refused = await api.post(CREATE_TASK, {"input": {"title": "Too early"}})
    assert [error["extensions"]["code"] for error in refused["errors"]] == ["UNAUTHENTICATED"]
    assert refused["errors"][0]["message"] == "Not authenticated"
    assert refused["data"] is None

    given = {"email": "eva@example.com", "username": "eva", "fullName": "Eva Luator", "password": "secret123"}
    registered = (await api.data(REGISTER, {"input": given}))["register"]
    assert registered["errors"] == []
    assert registered["tokenType"] == "Bearer"
    assert registered["expiresIn"] == 30 * 60

    login = "mutation($i: LoginInput!) { login(input: $i) { accessToken errors { code } } }"
    logged_in = await api.data(login, {"i": {"usernameOrEmail": "EVA@example.com", "password": "secret123"}})
    token = logged_in["login"]["accessToken"]

    async def ask(query: str, **variables: object) -> dict[str, object]:
        answer = await api.post(query, variables, by=token)
        assert "errors" not in answer, answer
        data: dict[str, object] = answer["data"]
        return data

    users = await ask("{ users { nodes { id username } } }")
    assert users == {"users": {"nodes": [{"id": registered["user"]["id"], "username": "eva"}]}}

    created = await ask(CREATE_TASK, input={"title": "Evaluate", "assigneeId": registered["user"]["id"]})
    task_id = created["createTask"]["task"]["id"]  # type: ignore[index]
    read = await ask("query($id: ID!) { task(id: $id) { title status priority creator { username } } }", id=task_id)
    assert read == {
        "task": {"title": "Evaluate", "status": "PENDING", "priority": "MEDIUM", "creator": {"username": "eva"}}
    }
    updated = await ask(
        'mutation($id: ID!) { updateTask(input: {id: $id, title: "Evaluated"}) { task { title } errors { code } } }',
        id=task_id,
    )
    assert updated == {"updateTask": {"task": {"title": "Evaluated"}, "errors": []}}
    deleted = await ask(
        "mutation($id: ID!) { deleteTask(input: {id: $id}) { deletedTaskId errors { code } } }", id=task_id
    )
    assert deleted == {"deleteTask": {"deletedTaskId": task_id, "errors": []}}
    assert await ask("query($id: ID!) { task(id: $id) { title } }", id=task_id) == {"task": None}
