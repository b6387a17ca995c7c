//! One allocation per distinct text: node and zone names repeat in every endpoint of a cluster.

use std::{collections::HashSet, sync::Arc};

/// Size below which a sweep is not worth its time.
const FIRST_SWEEP: usize = 1024;

/// Shares equal texts. Names that nobody holds any longer are swept out as the set grows.
#[derive(Debug)]
pub struct Interner {
    names: HashSet<Arc<str>>,
    sweep_at: usize,
}

impl Default for Interner {
    fn default() -> Self {
        Self { names: HashSet::new(), sweep_at: FIRST_SWEEP }
    }
}

impl Interner {
    pub fn get(&mut self, name: &str) -> Arc<str> {
        if let Some(known) = self.names.get(name) {
            return known.clone();
        }
        if self.names.len() >= self.sweep_at {
            self.names.retain(|name| Arc::strong_count(name) > 1);
            self.sweep_at = FIRST_SWEEP.max(2 * self.names.len());
        }
        let name: Arc<str> = name.into();
        self.names.insert(name.clone());
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_names_share_one_allocation_and_unused_ones_go() {
        let mut names = Interner::default();
        let node = names.get("node-a");
        assert!(Arc::ptr_eq(&node, &names.get("node-a")));
        for number in 0..3 * FIRST_SWEEP {
            names.get(&format!("passing-{number}"));
        }
        assert!(names.names.len() <= FIRST_SWEEP);
        assert!(Arc::ptr_eq(&node, &names.get("node-a")));
    }
}
