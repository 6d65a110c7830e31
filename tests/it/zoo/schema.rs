//! Every field and every variant that a type can have, as paths in the form of [`migrate_engine::image::forget::fields`]; a variant
//! without fields is its path, `=`, and its name. What serde asks of a deserializer tells them, one variant of each
//! enumeration at a time.

use serde::Deserialize;
use serde::de::value::{Error, U64Deserializer};
use serde::de::{DeserializeSeed, Deserializer, EnumAccess, Error as _, SeqAccess, VariantAccess, Visitor};
use std::collections::{BTreeMap, BTreeSet};

/// Passes after the last one that found something: an enumeration may lie behind others.
const QUIET: usize = 200;

/// Every path of a type.
pub fn paths<T: for<'de> Deserialize<'de>>() -> BTreeSet<String> {
    let mut walk = Walk::default();
    let mut quiet = 0;
    while quiet < QUIET {
        let before = walk.found.len();
        T::deserialize(&mut walk).expect("every choice leads to a value");
        assert!(walk.path.is_empty());
        quiet = if walk.found.len() == before { quiet + 1 } else { 0 };
    }
    // A number beside something else in a tuple has no path of its own.
    let mixed = |path: &String| walk.found.contains(&format!("{path}[*]"));
    walk.found.iter().filter(|path| !mixed(path)).cloned().collect()
}

#[derive(Default)]
struct Walk {
    path: String,
    found: BTreeSet<String>,
    /// The next variant of each enumeration.
    next: BTreeMap<String, usize>,
}

impl Walk {
    fn leaf(&mut self) {
        self.found.insert(self.path.clone());
    }

    fn number(&mut self) {
        let path = self.path.strip_suffix("[*]").unwrap_or(&self.path);
        self.found.insert(path.to_owned());
    }

    /// What is below, under a name of its own.
    fn below<R>(&mut self, name: &str, go: impl FnOnce(&mut Self) -> R) -> R {
        let length = self.path.len();
        if !self.path.is_empty() && name != "[*]" {
            self.path.push('.');
        }
        self.path.push_str(name);
        let result = go(self);
        self.path.truncate(length);
        result
    }
}

macro_rules! numbers {
    ($($method:ident $visit:ident $type:ty,)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            self.number();
            visitor.$visit(0 as $type)
        })*
    };
}

impl<'de> Deserializer<'de> for &mut Walk {
    type Error = Error;

    fn is_human_readable(&self) -> bool {
        false
    }

    numbers! {
        deserialize_u8 visit_u8 u8, deserialize_u16 visit_u16 u16, deserialize_u32 visit_u32 u32,
        deserialize_u64 visit_u64 u64, deserialize_i8 visit_i8 i8, deserialize_i16 visit_i16 i16,
        deserialize_i32 visit_i32 i32, deserialize_i64 visit_i64 i64,
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.leaf();
        visitor.visit_bool(false)
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.leaf();
        visitor.visit_string(String::new())
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.leaf();
        visitor.visit_byte_buf(Vec::new())
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_some(self)
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_unit()
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_seq(Elements { walk: self, names: &["[*]"] })
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, left: usize, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_seq(Elements { walk: self, names: &vec!["[*]"; left] })
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        left: usize,
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.deserialize_tuple(left, visitor)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_seq(Elements { walk: self, names: fields })
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let next = self.next.entry(self.path.clone()).or_default();
        let variant = *next % variants.len();
        *next += 1;
        visitor.visit_enum(Variant { walk: self, variant, name: variants[variant] })
    }

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Error> {
        Err(Error::custom("a type that asks what it is given is not in the model"))
    }

    serde::forward_to_deserialize_any! {
        f32 f64 i128 u128 char str bytes unit_struct map identifier ignored_any
    }
}

struct Elements<'w, 'n> {
    walk: &'w mut Walk,
    names: &'n [&'static str],
}

impl<'de> SeqAccess<'de> for Elements<'_, '_> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        let Some((name, rest)) = self.names.split_first() else { return Ok(None) };
        self.names = rest;
        self.walk.below(name, |walk| seed.deserialize(walk)).map(Some)
    }
}

struct Variant<'w> {
    walk: &'w mut Walk,
    variant: usize,
    name: &'static str,
}

impl<'de> EnumAccess<'de> for Variant<'_> {
    type Error = Error;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), Error> {
        let value = seed.deserialize(U64Deserializer::<Error>::new(self.variant as u64))?;
        Ok((value, self))
    }
}

impl<'de> VariantAccess<'de> for Variant<'_> {
    type Error = Error;

    fn unit_variant(self) -> Result<(), Error> {
        let path = format!("{}={}", self.walk.path, self.name);
        self.walk.found.insert(path);
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Error> {
        self.walk.below(self.name, |walk| seed.deserialize(walk))
    }

    fn tuple_variant<V: Visitor<'de>>(self, left: usize, visitor: V) -> Result<V::Value, Error> {
        self.walk.below(self.name, |walk| walk.deserialize_tuple(left, visitor))
    }

    fn struct_variant<V: Visitor<'de>>(self, fields: &'static [&'static str], visitor: V) -> Result<V::Value, Error> {
        self.walk.below(self.name, |walk| visitor.visit_seq(Elements { walk, names: fields }))
    }
}
