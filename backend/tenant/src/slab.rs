//! Handles: objects of one kind, each under a number that is not used again soon.
//!
//! A handle is an index and the count of the place's uses, so that one that was kept too long finds nothing.

use std::collections::VecDeque;

/// Bits of a handle that are the index.
const INDEX_BITS: u32 = 20;
/// Most objects of a kind.
pub(crate) const MAX_OBJECTS: u32 = 1 << INDEX_BITS;
/// The count runs from 1 to this, so that no handle is 0.
const LAST_USE: u32 = (1 << (32 - INDEX_BITS)) - 1;

#[derive(Debug)]
struct Place<T> {
    uses: u32,
    object: Option<T>,
}

/// The objects of one kind.
#[derive(Debug)]
pub(crate) struct Slab<T> {
    places: Vec<Place<T>>,
    free: VecDeque<u32>,
    max: u32,
}

impl<T> Slab<T> {
    /// Room for `max` objects.
    pub(crate) fn new(max: u32) -> Self {
        Self { places: Vec::new(), free: VecDeque::new(), max: max.min(MAX_OBJECTS) }
    }

    pub(crate) fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    /// The handle that the next [`Slab::insert`] gives; `None` if there is no room.
    pub(crate) fn next_handle(&self) -> Option<u32> {
        if let Some(index) = self.free.front() {
            let uses = self.places.get(usize::try_from(*index).ok()?)?.uses;
            return Some(handle(*index, next_use(uses)));
        }
        let index = u32::try_from(self.places.len()).ok()?;
        (index < self.max).then(|| handle(index, 1))
    }

    /// Takes in an object; `None` if there is no room.
    pub(crate) fn insert(&mut self, object: T) -> Option<u32> {
        let handle = self.next_handle()?;
        let index = handle % MAX_OBJECTS;
        let place = Place { uses: handle / MAX_OBJECTS, object: Some(object) };
        match self.free.pop_front() {
            Some(_) => *self.places.get_mut(usize::try_from(index).ok()?)? = place,
            None => self.places.push(place),
        }
        Some(handle)
    }

    fn place(&self, handle: u32) -> Option<&Place<T>> {
        let index = usize::try_from(handle % MAX_OBJECTS).ok()?;
        self.places.get(index).filter(|place| place.uses == handle / MAX_OBJECTS)
    }

    pub(crate) fn get(&self, handle: u32) -> Option<&T> {
        self.place(handle)?.object.as_ref()
    }

    pub(crate) fn get_mut(&mut self, handle: u32) -> Option<&mut T> {
        self.place(handle)?;
        self.places.get_mut(usize::try_from(handle % MAX_OBJECTS).ok()?)?.object.as_mut()
    }

    pub(crate) fn remove(&mut self, handle: u32) -> Option<T> {
        let object = self.take(handle)?;
        self.free.push_back(handle % MAX_OBJECTS);
        Some(object)
    }

    /// Takes an object out to work on it; its handle finds nothing until [`Slab::put_back`].
    pub(crate) fn take(&mut self, handle: u32) -> Option<T> {
        self.place(handle)?;
        self.places.get_mut(usize::try_from(handle % MAX_OBJECTS).ok()?)?.object.take()
    }

    /// Puts an object back that was taken out.
    pub(crate) fn put_back(&mut self, handle: u32, object: T) {
        let index = usize::try_from(handle % MAX_OBJECTS).unwrap_or(usize::MAX);
        if let Some(place) = self.places.get_mut(index) {
            place.object = Some(object);
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        self.places.iter().enumerate().filter_map(|(index, place)| {
            let index = u32::try_from(index).ok()?;
            Some((handle(index, place.uses), place.object.as_ref()?))
        })
    }

    pub(crate) fn handles(&self) -> Vec<u32> {
        self.iter().map(|(handle, _)| handle).collect()
    }

    /// Removes all objects; their handles stay used.
    pub(crate) fn drain(&mut self) -> Vec<T> {
        self.handles().into_iter().filter_map(|handle| self.remove(handle)).collect()
    }
}

const fn handle(index: u32, uses: u32) -> u32 {
    uses << INDEX_BITS | index
}

const fn next_use(uses: u32) -> u32 {
    if uses == LAST_USE { 1 } else { uses + 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handle_of_a_removed_object_finds_nothing_after_its_place_is_used_again() {
        let mut slab = Slab::new(1);
        let first = slab.insert('a').unwrap();
        assert_ne!(first, 0);
        assert_eq!((slab.next_handle(), slab.insert('b')), (None, None));
        assert_eq!(slab.remove(first), Some('a'));
        assert_eq!((slab.remove(first), slab.get(first)), (None, None));
        let next = slab.next_handle();
        let second = slab.insert('b');
        assert_eq!(second, next);
        assert_ne!(second, Some(first));
        assert_eq!((slab.get(first), slab.get(second.unwrap()), slab.len()), (None, Some(&'b'), 1));
    }

    #[test]
    fn count_of_uses_wraps_past_zero() {
        let mut slab = Slab::new(1);
        for _ in 0..2 * LAST_USE {
            let handle = slab.insert(()).unwrap();
            assert_ne!(handle / MAX_OBJECTS, 0);
            slab.remove(handle);
        }
    }

    #[test]
    fn garbage_finds_nothing() {
        let mut slab = Slab::new(4);
        let handle = slab.insert(()).unwrap();
        for garbage in [0, 1, u32::MAX, handle + 1, handle ^ 1 << 31] {
            assert_eq!(slab.get(garbage), None, "{garbage:#x}");
            assert_eq!(slab.remove(garbage), None, "{garbage:#x}");
        }
    }
}
