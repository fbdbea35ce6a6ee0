//! The rows of a feature file nearest to a query: every row is looked at, none is kept in memory.

pub mod mapped;
pub mod page;
mod thumbnail;
pub mod top;
