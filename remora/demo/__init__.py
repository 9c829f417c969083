"""The bookstore in a live mesh, with a tour: every step runs the command that a user would type, and checks what comes of it."""
