//! Where divergent branches join again: immediate post-dominators, by Cooper, Harvey and Kennedy,
//! "A simple, fast dominance algorithm" (2001), on the reversed graph of instructions.

use super::{END, Inst, Op};

/// The joining instruction of each instruction; [`END`] where paths join only at the exit.
pub(super) fn reconvergence(code: &[Inst]) -> Vec<usize> {
    let n = code.len();
    // Node n is the exit. Successors in control flow are predecessors in the reversed graph.
    let next: Vec<Vec<usize>> = code
        .iter()
        .enumerate()
        .map(|(i, inst)| match inst.op {
            Op::Bra { target } if inst.guard.is_none() => vec![target],
            Op::Bra { target } => vec![target, i + 1],
            Op::Exit | Op::Trap if inst.guard.is_none() => vec![n],
            Op::Exit | Op::Trap => vec![n, i + 1],
            _ => vec![i + 1],
        })
        .collect();
    let order = order_from_exit(&next, n);
    let mut rank = vec![usize::MAX; n + 1];
    for (i, node) in order.iter().enumerate() {
        rank[*node] = i;
    }
    let mut idom = vec![usize::MAX; n + 1];
    idom[n] = n;
    let mut changed = true;
    while changed {
        changed = false;
        for &node in &order[1..] {
            let mut new = usize::MAX;
            for &s in &next[node] {
                if idom[s] != usize::MAX {
                    new = if new == usize::MAX {
                        s
                    } else {
                        intersect(&idom, &rank, s, new)
                    };
                }
            }
            if idom[node] != new {
                idom[node] = new;
                changed = true;
            }
        }
    }
    idom[..n]
        .iter()
        .map(|&d| if d >= n { END } else { d })
        .collect()
}

/// Reverse postorder of the reversed graph, the exit first.
fn order_from_exit(next: &[Vec<usize>], n: usize) -> Vec<usize> {
    let mut before = vec![Vec::new(); n + 1];
    for (i, targets) in next.iter().enumerate() {
        for &t in targets {
            before[t].push(i);
        }
    }
    let (mut seen, mut post) = (vec![false; n + 1], Vec::with_capacity(n + 1));
    let mut stack = vec![(n, 0)];
    seen[n] = true;
    while let Some((node, child)) = stack.pop() {
        if let Some(&p) = before[node].get(child) {
            stack.push((node, child + 1));
            if !seen[p] {
                seen[p] = true;
                stack.push((p, 0));
            }
        } else {
            post.push(node);
        }
    }
    post.reverse();
    post
}

fn intersect(idom: &[usize], rank: &[usize], mut a: usize, mut b: usize) -> usize {
    while a != b {
        while rank[a] > rank[b] {
            a = idom[a];
        }
        while rank[b] > rank[a] {
            b = idom[b];
        }
    }
    a
}
