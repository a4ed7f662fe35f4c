-- Where the peers that write an event put it, and PostGraphile's function for it.

-- A table of their own: the relay of the idle taskflow would place rows of `events` every second, on the core of the
-- server that is being measured.
CREATE TABLE peer_events (LIKE events INCLUDING ALL);

CREATE FUNCTION set_task_status(task_id uuid, new_status varchar, viewer_id uuid) RETURNS tasks
LANGUAGE plpgsql AS $$
DECLARE
  before tasks;
  after tasks;
  event_id bigint;
  derived CONSTANT text[] := '{title_key, description_key, search_words}';
BEGIN
  SELECT * INTO before FROM tasks WHERE id = task_id FOR UPDATE;
  UPDATE tasks SET status = new_status, completed_at = CASE WHEN new_status = 'COMPLETED' THEN now() END,
    version = version + 1, updated_at = now()
  WHERE id = task_id RETURNING * INTO after;
  IF after.id IS NULL THEN
    RETURN NULL;
  END IF;
  INSERT INTO peer_events
    (subject_type, subject_id, kind, actor_id, audience, changed_fields, before, after, occurred_at)
  VALUES (
    'TASK', task_id, 'UPDATED', viewer_id,
    array_remove(ARRAY[after.creator_id, nullif(after.assignee_id, after.creator_id)], NULL),
    'STATUS', to_jsonb(before) - derived, to_jsonb(after) - derived, now()
  )
  RETURNING id INTO event_id;
  PERFORM pg_notify('events', event_id::text);
  RETURN after;
END $$;
