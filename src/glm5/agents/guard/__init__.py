"""What an agent may do: rules on parsed commands, a gate for what cannot be undone, snapshots, an audit."""
