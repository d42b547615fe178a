//! A serde deserializer around another that counts how deep the input nests, at every kind of visit.
//!
//! `rmp_serde` counts arrays and maps only, and keeps its marker while it visits options and newtypes: for
//! `struct Chain(Option<Box<Chain>>)` one byte recurses for ever. Here everything that can hold another value costs
//! one level: arrays, maps, `Some`, newtypes, enums with whatever their variants hold, and values that are skipped.
//!
//! The level is passed down by value, so it needs no counting back on the way up, whatever error ends a visit.

use std::cell::Cell;
use std::fmt;

use serde::de::{
    DeserializeSeed, Deserializer, EnumAccess, Error, MapAccess, SeqAccess, VariantAccess, Visitor,
};

/// What the rest of the input may still use.
#[derive(Clone, Copy)]
struct Budget<'b> {
    /// Levels left below this one.
    levels: usize,
    /// Elements that size hints may still promise, over the whole input.
    ///
    /// Every element of every array or map takes a byte of its own, so an honest input never promises more than its
    /// length. Without this, nested heads that claim four billion elements each would each make serde reserve 1 MiB.
    promises: &'b Cell<usize>,
}

impl Budget<'_> {
    fn descend<E: Error>(self) -> Result<Self, E> {
        match self.levels.checked_sub(1) {
            Some(levels) => Ok(Budget { levels, ..self }),
            None => Err(too_deep()),
        }
    }

    fn promise(self, hint: Option<usize>) -> Option<usize> {
        let left = self.promises.get();
        let granted = hint?.min(left);
        self.promises.set(left - granted);
        Some(granted)
    }
}

#[cold]
fn too_deep<E: Error>() -> E {
    E::custom("the value nests deeper than allowed")
}

/// Runs `seed` over `inner`, with at most `levels` of nesting and an input of `len` bytes.
pub(crate) fn limited<'de, S, D>(seed: S, inner: D, levels: usize, len: usize) -> Result<S::Value, D::Error>
where
    S: DeserializeSeed<'de>,
    D: Deserializer<'de>,
{
    let promises = Cell::new(len);
    seed.deserialize(Limited { inner, budget: Budget { levels, promises: &promises } })
}

/// Any part of serde's protocol, with what it may still use.
struct Limited<'b, T> {
    inner: T,
    budget: Budget<'b>,
}

/// An array or a map, with the elements it may promise.
struct Elements<'b, A> {
    inner: A,
    budget: Budget<'b>,
    hint: Option<usize>,
}

macro_rules! forward_deserialize {
    ($($name:ident($($arg:ident: $ty:ty),*))*) => {$(
        #[inline]
        fn $name<V: Visitor<'de>>(self, $($arg: $ty,)* visitor: V) -> Result<V::Value, D::Error> {
            self.inner.$name($($arg,)* Limited { inner: visitor, budget: self.budget })
        }
    )*};
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Limited<'_, D> {
    type Error = D::Error;

    forward_deserialize! {
        deserialize_any() deserialize_bool()
        deserialize_i8() deserialize_i16() deserialize_i32() deserialize_i64() deserialize_i128()
        deserialize_u8() deserialize_u16() deserialize_u32() deserialize_u64() deserialize_u128()
        deserialize_f32() deserialize_f64() deserialize_char() deserialize_str() deserialize_string()
        deserialize_bytes() deserialize_byte_buf() deserialize_option() deserialize_unit()
        deserialize_unit_struct(name: &'static str)
        deserialize_newtype_struct(name: &'static str)
        deserialize_seq()
        deserialize_tuple(len: usize)
        deserialize_tuple_struct(name: &'static str, len: usize)
        deserialize_map()
        deserialize_struct(name: &'static str, fields: &'static [&'static str])
        deserialize_enum(name: &'static str, variants: &'static [&'static str])
        deserialize_identifier() deserialize_ignored_any()
    }

    #[inline]
    fn is_human_readable(&self) -> bool {
        self.inner.is_human_readable()
    }
}

macro_rules! forward_visit {
    ($($name:ident($ty:ty))*) => {$(
        #[inline]
        fn $name<E: Error>(self, value: $ty) -> Result<V::Value, E> {
            self.inner.$name(value)
        }
    )*};
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Limited<'_, V> {
    type Value = V::Value;

    forward_visit! {
        visit_bool(bool) visit_i8(i8) visit_i16(i16) visit_i32(i32) visit_i64(i64) visit_i128(i128)
        visit_u8(u8) visit_u16(u16) visit_u32(u32) visit_u64(u64) visit_u128(u128)
        visit_f32(f32) visit_f64(f64) visit_char(char) visit_str(&str) visit_borrowed_str(&'de str)
        visit_string(String) visit_bytes(&[u8]) visit_borrowed_bytes(&'de [u8]) visit_byte_buf(Vec<u8>)
    }

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.expecting(formatter)
    }

    #[inline]
    fn visit_none<E: Error>(self) -> Result<V::Value, E> {
        self.inner.visit_none()
    }

    #[inline]
    fn visit_unit<E: Error>(self) -> Result<V::Value, E> {
        self.inner.visit_unit()
    }

    #[inline]
    fn visit_some<D: Deserializer<'de>>(self, inner: D) -> Result<V::Value, D::Error> {
        let budget = self.budget.descend()?;
        self.inner.visit_some(Limited { inner, budget })
    }

    #[inline]
    fn visit_newtype_struct<D: Deserializer<'de>>(self, inner: D) -> Result<V::Value, D::Error> {
        let budget = self.budget.descend()?;
        self.inner.visit_newtype_struct(Limited { inner, budget })
    }

    #[inline]
    fn visit_seq<A: SeqAccess<'de>>(self, inner: A) -> Result<V::Value, A::Error> {
        let budget = self.budget.descend()?;
        let hint = budget.promise(inner.size_hint());
        self.inner.visit_seq(Elements { inner, budget, hint })
    }

    #[inline]
    fn visit_map<A: MapAccess<'de>>(self, inner: A) -> Result<V::Value, A::Error> {
        let budget = self.budget.descend()?;
        let hint = budget.promise(inner.size_hint());
        self.inner.visit_map(Elements { inner, budget, hint })
    }

    #[inline]
    fn visit_enum<A: EnumAccess<'de>>(self, inner: A) -> Result<V::Value, A::Error> {
        let budget = self.budget.descend()?;
        self.inner.visit_enum(Limited { inner, budget })
    }
}

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Limited<'_, S> {
    type Value = S::Value;

    #[inline]
    fn deserialize<D: Deserializer<'de>>(self, inner: D) -> Result<S::Value, D::Error> {
        self.inner.deserialize(Limited { inner, budget: self.budget })
    }
}

impl<'de, A: SeqAccess<'de>> SeqAccess<'de> for Elements<'_, A> {
    type Error = A::Error;

    #[inline]
    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, A::Error> {
        self.inner.next_element_seed(Limited { inner: seed, budget: self.budget })
    }

    #[inline]
    fn size_hint(&self) -> Option<usize> {
        self.hint
    }
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Elements<'_, A> {
    type Error = A::Error;

    #[inline]
    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, A::Error> {
        self.inner.next_key_seed(Limited { inner: seed, budget: self.budget })
    }

    #[inline]
    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, A::Error> {
        self.inner.next_value_seed(Limited { inner: seed, budget: self.budget })
    }

    #[inline]
    fn size_hint(&self) -> Option<usize> {
        self.hint
    }
}

impl<'de, 'b, A: EnumAccess<'de>> EnumAccess<'de> for Limited<'b, A> {
    type Error = A::Error;
    type Variant = Limited<'b, A::Variant>;

    #[inline]
    fn variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<(S::Value, Self::Variant), A::Error> {
        let (value, inner) = self.inner.variant_seed(Limited { inner: seed, budget: self.budget })?;
        Ok((value, Limited { inner, budget: self.budget }))
    }
}

impl<'de, A: VariantAccess<'de>> VariantAccess<'de> for Limited<'_, A> {
    type Error = A::Error;

    #[inline]
    fn unit_variant(self) -> Result<(), A::Error> {
        self.inner.unit_variant()
    }

    #[inline]
    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, A::Error> {
        self.inner.newtype_variant_seed(Limited { inner: seed, budget: self.budget })
    }

    #[inline]
    fn tuple_variant<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, A::Error> {
        self.inner.tuple_variant(len, Limited { inner: visitor, budget: self.budget })
    }

    #[inline]
    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, A::Error> {
        self.inner.struct_variant(fields, Limited { inner: visitor, budget: self.budget })
    }
}
