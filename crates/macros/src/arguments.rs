//! The parameters of a function that travel: encoded by its caller, decoded by the process that runs it.

use proc_macro2::TokenStream;
use quote::{format_ident, quote, quote_spanned};
use syn::Type;
use syn::spanned::Spanned;

use crate::travel::{as_one, is_bytes, shown_at};

/// Their types, in order.
pub(crate) struct Arguments(pub(crate) Vec<Type>);

impl Arguments {
    /// The one type that callers give.
    pub(crate) fn as_one(&self) -> TokenStream {
        as_one(&self.0.iter().map(|ty| quote!(#ty)).collect::<Vec<_>>())
    }

    /// Names for them.
    pub(crate) fn names(&self) -> Vec<syn::Ident> {
        (0..self.0.len()).map(|index| format_ident!("__arg{index}")).collect()
    }

    /// What takes them apart once they are decoded.
    pub(crate) fn pattern(&self) -> TokenStream {
        as_one(&self.names().iter().map(|name| quote!(#name)).collect::<Vec<_>>())
    }

    /// What they are encoded as: `Vec<u8>` as a byte string.
    pub(crate) fn encoded(&self) -> TokenStream {
        let types = self
            .0
            .iter()
            .map(|ty| if is_bytes(ty) { quote!(::hatchery::__private::ByteString) } else { quote!(#ty) });
        as_one(&types.collect::<Vec<_>>())
    }

    /// How they are decoded out of `__body`.
    pub(crate) fn decoded(&self) -> TokenStream {
        if let [ty] = &*self.0 {
            if is_bytes(ty) {
                return quote! {
                    ::hatchery::__private::take_bytes(__body).map(::hatchery::__private::ByteString::from)
                };
            }
        }
        let encoded = self.encoded();
        quote! {{
            use ::hatchery::__private::{CannotDecode as _, Decodes as _};
            (&::hatchery::__private::Decoding::<#encoded>::new()).decoded(__body)
        }}
    }

    /// What the function is given of them once they are decoded.
    pub(crate) fn passed(&self) -> impl Iterator<Item = TokenStream> {
        let arguments = self.names().into_iter().zip(&self.0);
        arguments.map(|(name, ty)| if is_bytes(ty) { quote!(#name.into_vec()) } else { quote!(#name) })
    }

    /// Says of each type that it must travel, where it is written.
    pub(crate) fn must_travel(&self) -> TokenStream {
        self.0.iter().map(must_travel).collect()
    }

    /// The caller's half: `__encode`.
    pub(crate) fn encode(&self) -> TokenStream {
        let args = self.as_one();
        let bytes = |place| quote!(::hatchery::__private::ByteSlice(#place));
        let value = self.value(quote!(__args), bytes, quote!(&));
        quote! {
            fn __encode(
                __args: &#args,
            ) -> ::core::result::Result<::hatchery::__private::Body, ::hatchery::__private::EncodeError> {
                use ::hatchery::__private::{CannotEncode as _, Encodes as _};
                (&::hatchery::__private::Encoding(#value)).encoded()
            }
        }
    }

    /// The same in a row with others, by value: `__encode_packed`.
    pub(crate) fn encode_packed(&self) -> TokenStream {
        let args = self.as_one();
        // Large ones are moved.
        let bytes = |place| quote!(::hatchery::__private::ByteString::in_row(#place));
        let value = self.value(quote!(&__args), bytes, quote!());
        quote! {
            fn __encode_packed(
                __args: #args,
                __out: &mut ::std::vec::Vec<u8>,
            ) -> ::core::result::Result<
                ::core::option::Option<::hatchery::__private::Body>,
                ::hatchery::__private::EncodeError,
            > {
                use ::hatchery::__private::{CannotEncode as _, Encodes as _};
                (&::hatchery::__private::Encoding(#value)).encoded_onto(__out)
            }
        }
    }

    /// What is encoded of `__args`: byte strings as this makes them of a `place`, everything else as it is.
    fn value(
        &self,
        whole: TokenStream,
        bytes: impl Fn(TokenStream) -> TokenStream,
        by: TokenStream,
    ) -> TokenStream {
        match &*self.0 {
            [ty] if is_bytes(ty) => {
                let bytes = bytes(quote!(__args));
                quote!(&#bytes)
            }
            many if many.len() > 1 && many.iter().any(is_bytes) => {
                let fields = many.iter().enumerate().map(|(index, ty)| {
                    let index = syn::Index::from(index);
                    if is_bytes(ty) { bytes(quote!(#by __args.#index)) } else { quote!(&__args.#index) }
                });
                quote!(&(#(#fields),*))
            }
            _ => whole,
        }
    }
}

/// Says of a type that it must travel, where it is written.
pub(crate) fn must_travel(ty: &Type) -> TokenStream {
    if is_bytes(ty) {
        return TokenStream::new();
    }
    quote_spanned! {shown_at(ty.span())=>
        const _: fn() = ::hatchery::__private::must_travel::<#ty>;
    }
}
