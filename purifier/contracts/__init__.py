"""The interface that purifier authors implement, and how purifiers are found and stored."""
