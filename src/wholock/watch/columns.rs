//! Which columns of the table fit the screen, and how wide they are. Pure.

use crate::wholock::view::{COLUMNS, Row};

/// A column of the live table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Column {
    /// One of the plain table, by its place there.
    Plain(usize),
    /// The job's CPU use of late, as a line of bars.
    Graph,
}

/// The command line, which takes what the others leave.
pub const COMMAND: usize = COLUMNS.len() - 1;

/// Spaces between two columns.
pub const GAP: usize = 2;

/// What goes first where the screen is narrow, and the width of the command that is worth more.
const DROPPED: [(Column, usize); 9] = [
    (Column::Plain(7), 20), // CPU TIME
    (Column::Plain(6), 20), // CPU AVG
    (Column::Plain(9), 20), // PROCS
    (Column::Plain(8), 20), // MEMORY
    (Column::Graph, COMMAND_AT_LEAST),
    (Column::Plain(2), COMMAND_AT_LEAST), // MODE
    (Column::Plain(4), COMMAND_AT_LEAST), // AGE
    (Column::Plain(1), COMMAND_AT_LEAST), // USER
    (Column::Plain(5), COMMAND_AT_LEAST), // CPU NOW
];

/// No column but the command's is wider.
const WIDEST: usize = 16;

/// The least and most that a graph is worth.
const GRAPH: (usize, usize) = (8, 30);

/// The least for a command.
const COMMAND_AT_LEAST: usize = 12;

/// The columns of these rows that fit `width` cells, from left to right. The command's is always among them.
pub fn fit<'a>(rows: impl Iterator<Item = &'a Row> + Clone, width: usize) -> Vec<(Column, usize)> {
    use unicode_width::UnicodeWidthStr;
    let widest = |column: usize| {
        let cells = rows.clone().map(|row| row[column].width());
        cells.chain([COLUMNS[column].width()]).max().unwrap_or(0).min(WIDEST)
    };
    let plain = (0..COMMAND).map(|index| (Column::Plain(index), widest(index)));
    let last = [(Column::Graph, GRAPH.0), (Column::Plain(COMMAND), COMMAND_AT_LEAST)];
    let mut columns: Vec<(Column, usize)> = plain.chain(last).collect();
    for (dropped, command) in DROPPED {
        if total(&columns) - COMMAND_AT_LEAST + command > width {
            columns.retain(|(column, _)| *column != dropped);
        }
    }
    let mut left = width.saturating_sub(total(&columns));
    for (column, cells) in &mut columns {
        match column {
            Column::Graph => {
                let more = (left / 3).min(GRAPH.1 - GRAPH.0);
                *cells += more;
                left -= more;
            }
            Column::Plain(COMMAND) => *cells += left,
            Column::Plain(_) => {}
        }
    }
    columns
}

fn total(columns: &[(Column, usize)]) -> usize {
    columns.iter().map(|(_, cells)| cells).sum::<usize>() + columns.len().saturating_sub(1) * GAP
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row() -> Row {
        ["7", "alice", "exclusive", "waiting for 6", "12m 30s", "400%", "380%", "47m 30s", "3.0G", "12", "make -j8"]
            .map(str::to_owned)
    }

    fn names(width: usize) -> String {
        let name = |(column, _): &(Column, usize)| match column {
            Column::Plain(index) => COLUMNS[*index],
            Column::Graph => "~",
        };
        fit([&row()].into_iter(), width).iter().map(name).collect::<Vec<_>>().join(",")
    }

    #[test]
    fn what_tells_least_goes_first() {
        assert_eq!(names(140), "JOB,USER,MODE,STATE,AGE,CPU NOW,CPU AVG,CPU TIME,MEMORY,PROCS,~,COMMAND");
        assert_eq!(names(100), "JOB,USER,MODE,STATE,AGE,CPU NOW,MEMORY,~,COMMAND");
        assert_eq!(names(80), "JOB,USER,MODE,STATE,AGE,CPU NOW,~,COMMAND");
        assert_eq!(names(40), "JOB,STATE,COMMAND");
        assert_eq!(names(0), "JOB,STATE,COMMAND");
    }

    #[test]
    fn a_row_takes_the_whole_width_and_no_more() {
        for width in 35..300 {
            assert_eq!(total(&fit([&row()].into_iter(), width)), width);
        }
    }
}
