"""How Alembic reaches the index: on the connection that `database.py` hands over."""

from alembic import context

from afina.registry.tables import Base

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
