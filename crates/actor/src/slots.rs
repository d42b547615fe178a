//! A table of what is under way, whose keys are places in it: no hashing, and memory that is used again.

/// Values under keys that it makes up itself.
///
/// A key is a place and how often that place has been used before, so a key that was given back is found to be old: it
/// comes again only after its place has been used four thousand million times.
#[derive(Debug)]
pub(crate) struct Slots<T> {
    places: Vec<Place<T>>,
    free: Vec<u32>,
    /// What the count of a new place begins with.
    begin: u32,
}

#[derive(Debug)]
struct Place<T> {
    uses: u32,
    value: Option<T>,
}

impl<T> Default for Slots<T> {
    fn default() -> Slots<T> {
        Slots { places: Vec::new(), free: Vec::new(), begin: 0 }
    }
}

fn key(index: u32, uses: u32) -> u64 {
    u64::from(uses) << 32 | u64::from(index)
}

impl<T> Slots<T> {
    /// Puts a value in and gives its key.
    pub(crate) fn insert(&mut self, value: T) -> u64 {
        if let Some(index) = self.free.pop() {
            let place = &mut self.places[index as usize];
            place.value = Some(value);
            return key(index, place.uses);
        }
        // Each value is owned by a future that is larger than a place: there is no memory for so many.
        let index = u32::try_from(self.places.len()).unwrap_or_else(|_| panic!("too many requests at once"));
        self.places.push(Place { uses: self.begin, value: Some(value) });
        key(index, self.begin)
    }

    pub(crate) fn get_mut(&mut self, key: u64) -> Option<&mut T> {
        self.place(key)?.value.as_mut()
    }

    pub(crate) fn get(&self, key: u64) -> Option<&T> {
        let place = self.places.get(key as u32 as usize)?;
        if u64::from(place.uses) == key >> 32 { place.value.as_ref() } else { None }
    }

    pub(crate) fn contains(&self, key: u64) -> bool {
        self.get(key).is_some()
    }

    pub(crate) fn remove(&mut self, key: u64) -> Option<T> {
        let value = self.place(key)?.value.take()?;
        self.vacate(key);
        Some(value)
    }

    /// Takes something out of a value, which is dropped where it is if there was something.
    #[inline]
    pub(crate) fn finish<U>(&mut self, key: u64, take: impl FnOnce(&mut T) -> Option<U>) -> Option<U> {
        let place = self.place(key)?;
        let taken = take(place.value.as_mut()?)?;
        place.value = None;
        self.vacate(key);
        Some(taken)
    }

    fn place(&mut self, key: u64) -> Option<&mut Place<T>> {
        self.places.get_mut(key as u32 as usize).filter(|place| u64::from(place.uses) == key >> 32)
    }

    /// The value of this key is gone, and the key is not used again.
    fn vacate(&mut self, key: u64) {
        let place = &mut self.places[key as u32 as usize];
        place.uses = place.uses.wrapping_add(1);
        self.free.push(key as u32);
        if self.free.len() == self.places.len() && self.places.len() > KEPT {
            self.shrink();
        }
    }

    /// Gives back the memory of an empty table that was crowded once.
    fn shrink(&mut self) {
        // A place that comes again later must not begin to count anew.
        self.begin = self.places.iter().map(|place| place.uses).max().unwrap_or_default();
        self.places.truncate(KEPT);
        self.places.shrink_to_fit();
        self.free = (0..KEPT as u32).rev().collect();
    }

    /// How many values there are.
    pub(crate) fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All values with their keys.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (u64, &mut T)> {
        self.places.iter_mut().enumerate().filter_map(|(index, place)| {
            let key = key(index as u32, place.uses);
            place.value.as_mut().map(|value| (key, value))
        })
    }
}

/// Places whose memory an empty table keeps.
const KEPT: usize = 1024;

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_old_key_finds_nothing_though_its_place_is_taken_again() {
        let mut slots = Slots::default();
        let old = slots.insert(1);
        assert_eq!(slots.remove(old), Some(1));
        let new = slots.insert(2);
        assert_ne!(old, new);
        assert!(slots.get_mut(old).is_none() && !slots.contains(old) && slots.remove(old).is_none());
        assert_eq!(slots.get_mut(new), Some(&mut 2));
    }

    proptest! {
        #[test]
        fn it_is_a_map_whose_keys_are_never_used_twice(
            steps in prop::collection::vec((any::<bool>(), any::<prop::sample::Index>()), 1..400),
            crowd in prop_oneof![9 => Just(0), 1 => Just(2 * KEPT)],
        ) {
            let (mut slots, mut model, mut used) = (Slots::default(), HashMap::new(), HashSet::new());
            let crowded: Vec<u64> = (0..crowd).map(|_| slots.insert(0)).collect();
            used.extend(&crowded);
            for key in crowded {
                prop_assert_eq!(slots.remove(key), Some(0));
            }
            for (step, (insert, which)) in steps.into_iter().enumerate() {
                let mut keys: Vec<u64> = model.keys().copied().collect();
                keys.sort_unstable();
                if insert || keys.is_empty() {
                    let key = slots.insert(step);
                    prop_assert!(used.insert(key), "used before");
                    model.insert(key, step);
                } else {
                    let key = *which.get(&keys);
                    let expected = model.remove(&key);
                    if step % 2 == 0 {
                        prop_assert_eq!(slots.remove(key), expected);
                    } else {
                        prop_assert_eq!(slots.finish(key, |_| None::<()>), None);
                        prop_assert_eq!(slots.finish(key, |value| Some(*value)), expected);
                    }
                    prop_assert!(!slots.contains(key));
                }
                prop_assert_eq!(slots.len(), model.len());
                let all: HashMap<u64, usize> = slots.iter_mut().map(|(key, value)| (key, *value)).collect();
                prop_assert_eq!(&all, &model);
            }
        }
    }
}
