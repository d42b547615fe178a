//! Methods that answer with a stream: what they return, what it yields, and the bounds that let it outlive the call.

use proc_macro2::TokenStream;
use quote::{quote, quote_spanned};
use syn::spanned::Spanned;
use syn::{
    AssocType, GenericArgument, GenericParam, Generics, Lifetime, PathArguments, ReturnType, Signature, Type,
    TypeImplTrait, TypeParamBound, parse_quote, parse_quote_spanned,
};

use crate::travel::{is_bytes, is_result, is_stream, last_name, peeled, shown_at};

/// What a method yields that returns `impl Stream<Item = T>`, or a `Result` of it.
pub(crate) struct Streamed {
    pub(crate) item: Type,
    /// The error that there may be instead of a stream.
    pub(crate) error: Option<TokenStream>,
}

impl Streamed {
    /// What `__result` is answered with.
    pub(crate) fn answer(&self, result: &Type) -> TokenStream {
        let item = &self.item;
        let encode = if is_bytes(item) {
            quote!(|__item| ::hatchery::__private::encode(&::hatchery::__private::ByteSlice(__item)))
        } else {
            // An item that cannot travel is refused where the handle's method takes it.
            quote!(|__item: &#item| {
                use ::hatchery::__private::{CannotEncode as _, Encodes as _};
                (&::hatchery::__private::Encoding(__item)).encoded()
            })
        };
        let begin = quote_spanned! {shown_at(result.span())=>
            ::hatchery::__private::begin_stream(__cx, __asked, __result, #encode)
        };
        if self.error.is_none() {
            return begin;
        }
        quote! {
            match __result {
                ::core::result::Result::Ok(__result) => #begin,
                ::core::result::Result::Err(__error) => ::hatchery::__private::Answer::result::<(), _>(
                    __asked,
                    &::core::result::Result::Err(__error),
                ),
            }
        }
    }
}

/// What a result yields, if it is a stream.
///
/// # Errors
/// It does not say what it yields, or borrows.
pub(crate) fn streamed(ty: &Type) -> syn::Result<Option<Streamed>> {
    let mut result = ty.clone();
    let Some(stream) = stream_in(&mut result) else { return Ok(None) };
    for bound in &stream.bounds {
        if let Some(lifetime) = borrowed(bound) {
            return Err(syn::Error::new_spanned(
                lifetime,
                format!(
                    "the stream goes on while the actor handles other messages, and cannot borrow from it: \
                     leave `{lifetime}` out and move into the stream what it needs"
                ),
            ));
        }
    }
    let Some(item) = item_of(stream) else {
        return Err(syn::Error::new_spanned(
            stream,
            "the stream must say what it yields: write `impl Stream<Item = T>`",
        ));
    };
    let error = is_result(ty).then(|| {
        // The stream itself has no name, but it does not matter to the error.
        *place_of_stream(&mut result).expect("it was there before") = parse_quote!(());
        quote!(<#result as ::hatchery::__private::ResultParts>::Err)
    });
    Ok(Some(Streamed { item, error }))
}

/// Adds what the stream must be to outlive the call: `Send`, `'static`, and of nothing but the actor's type parameters.
pub(crate) fn let_outlive(signature: &mut Signature, generics: &Generics) {
    let ReturnType::Type(_, ty) = &mut signature.output else { return };
    let Some(stream) = stream_in(ty) else { return };
    if stream.bounds.iter().any(|bound| borrowed(bound).is_some()) {
        // It was refused, and that is enough.
        return;
    }
    // What does not hold is told at the stream.
    let place = shown_at(stream.span());
    if !stream.bounds.iter().any(|bound| matches!(bound, TypeParamBound::PreciseCapture(_))) {
        let names = generics.params.iter().filter_map(|parameter| match parameter {
            GenericParam::Type(of) => Some(&of.ident),
            GenericParam::Const(of) => Some(&of.ident),
            GenericParam::Lifetime(_) => None,
        });
        stream.bounds.push(parse_quote_spanned!(place=> use<#(#names),*>));
    }
    stream.bounds.push(parse_quote_spanned!(place=> ::core::marker::Send));
    stream.bounds.push(parse_quote_spanned!(place=> 'static));
}

/// What a bound borrows for.
fn borrowed(bound: &TypeParamBound) -> Option<&Lifetime> {
    match bound {
        TypeParamBound::Lifetime(lifetime) if lifetime.ident != "static" => Some(lifetime),
        _ => None,
    }
}

fn stream_in(ty: &mut Type) -> Option<&mut TypeImplTrait> {
    match place_of_stream(ty)? {
        Type::ImplTrait(stream) => Some(stream),
        _ => None,
    }
}

/// Where the `impl Stream` stands: alone, or first in a `Result`.
fn place_of_stream(ty: &mut Type) -> Option<&mut Type> {
    if is_stream(ty) {
        return Some(ty);
    }
    match ty {
        Type::Paren(paren) => place_of_stream(&mut paren.elem),
        Type::Group(group) => place_of_stream(&mut group.elem),
        Type::Path(path) if last_name(&path.path).as_deref() == Some("Result") => {
            let arguments = &mut path.path.segments.last_mut()?.arguments;
            let PathArguments::AngleBracketed(arguments) = arguments else { return None };
            match arguments.args.first_mut()? {
                GenericArgument::Type(ok) if is_stream(peeled(ok)) => place_of_stream(ok),
                _ => None,
            }
        }
        _ => None,
    }
}

fn item_of(stream: &TypeImplTrait) -> Option<Type> {
    let bound = stream.bounds.iter().find_map(|bound| match bound {
        TypeParamBound::Trait(bound) if last_name(&bound.path).as_deref() == Some("Stream") => Some(bound),
        _ => None,
    })?;
    let PathArguments::AngleBracketed(arguments) = &bound.path.segments.last()?.arguments else {
        return None;
    };
    arguments.args.iter().find_map(|argument| match argument {
        GenericArgument::AssocType(AssocType { ident, ty, .. }) if ident == "Item" => Some(ty.clone()),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::travel::{messages_of, written};

    fn item(ty: Type) -> String {
        let streamed = streamed(&ty).unwrap().expect("a stream");
        format!("{} or {}", written(&streamed.item), streamed.error.map(written).unwrap_or_default())
    }

    #[test]
    fn a_stream_is_known_by_its_last_name() {
        assert_eq!(item(parse_quote!(impl Stream<Item = u64>)), "u64 or ");
        assert_eq!(
            item(parse_quote!(impl Send + futures_core::Stream<Item = Vec<u8>> + 'static)),
            "Vec<u8> or "
        );
        assert!(
            item(parse_quote!(Result<impl Stream<Item = u64>, Full>)).starts_with("u64 or <Result<(), Full>")
        );
        assert!(item(parse_quote!(hatchery::Result<impl Stream<Item = u64>>)).contains("Result<()>"));
        for ty in [
            parse_quote!(u64),
            parse_quote!(impl Iterator<Item = u64>),
            parse_quote!(Vec<Stream>),
            parse_quote!(Option<impl Stream<Item = u64>>),
        ] {
            assert!(streamed(&ty).unwrap().is_none());
        }
    }

    #[test]
    fn a_stream_that_borrows_or_does_not_say_what_it_yields_is_refused() {
        for (ty, why) in [
            (parse_quote!(impl Stream<Item = u64> + '_), "leave `'_` out"),
            (parse_quote!(impl Stream), "write `impl Stream<Item = T>`"),
        ] {
            let refusal = messages_of(streamed(&ty));
            assert!(refusal.contains(why), "{refusal:?} does not say {why:?}");
        }
    }

    #[test]
    fn the_bounds_are_added_where_the_stream_is_written() {
        let generics: Generics = parse_quote!(<K: Key, const N: usize>);
        for (method, bounded) in [
            (
                "fn f() -> impl Stream<Item = K>",
                "impl Stream<Item = K> + use<K, N> + ::core::marker::Send + 'static",
            ),
            (
                "fn f() -> Result<impl Stream<Item = K> + use<K>, E>",
                "Result<impl Stream<Item = K> + use<K> + ::core::marker::Send + 'static, E>",
            ),
            ("fn f() -> Vec<K>", "Vec<K>"),
        ] {
            let mut signature: Signature = syn::parse_str(method).unwrap();
            let_outlive(&mut signature, &generics);
            let ReturnType::Type(_, ty) = &signature.output else { unreachable!() };
            assert_eq!(written(ty).replace(' ', ""), bounded.replace(' ', ""));
        }
    }
}
