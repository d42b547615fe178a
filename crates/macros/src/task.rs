//! `#[task]`: a function becomes a constant of its name, typed by its signature and registered so that another
//! process finds it.

use proc_macro2::{TokenStream, TokenTree};
use quote::{ToTokens, format_ident, quote, quote_spanned};
use syn::ext::IdentExt;
use syn::spanned::Spanned;
use syn::{Attribute, FnArg, Item, ItemFn, Meta, Signature, Token, Type, Visibility, punctuated::Punctuated};

use crate::travel::{
    Refusals, as_one, is_bytes, is_context, is_result, peeled, refuse_options, result_of, shown_at,
    told_beside, written,
};

pub(crate) fn expand(options: TokenStream, item: TokenStream) -> TokenStream {
    match Task::read(&options, item.clone()) {
        Ok((task, refusals)) => match refusals.none_or(()) {
            Ok(()) => task.constant(),
            Err(error) => {
                let error = error.to_compile_error();
                let stand_in = task.stand_in();
                quote!(#error #stand_in)
            }
        },
        Err(error) => told_beside(&error, &item),
    }
}

/// A function that may run in another process.
struct Task {
    /// Of the constant: documentation, conditions and lint levels.
    attributes: Vec<Attribute>,
    visibility: Visibility,
    /// As written, with the attributes that only a function can have.
    function: ItemFn,
    parameters: Vec<Type>,
    result: Type,
}

impl Task {
    /// The task and what is wrong with it. What is so wrong that nothing can stand in for it is an error.
    fn read(options: &TokenStream, item: TokenStream) -> syn::Result<(Task, Refusals)> {
        let mut function = match syn::parse2(item)? {
            Item::Fn(function) => function,
            other => {
                return Err(syn::Error::new_spanned(
                    other,
                    "a task is a function: write `#[hatchery::task] fn name(..) -> ..`",
                ));
            }
        };
        let mut refusals = Refusals::default();
        refusals.unless(refuse_options(options, "task", "write it alone"));
        refusals.of_signature(&function.sig, "a task");
        refusals.of_many(&function.sig, function.sig.inputs.len());
        let mut parameters = Vec::new();
        for (index, input) in function.sig.inputs.iter().enumerate() {
            match input {
                FnArg::Receiver(receiver) => refusals.at(
                    receiver,
                    "a task has no `self`: write a free function, or `#[hatchery::actor]` on the impl block",
                ),
                FnArg::Typed(parameter) if is_context(&parameter.ty) => refusals.at(
                    parameter,
                    "a task has no `Context`: leave it out, `hatchery::current()` says where it runs",
                ),
                FnArg::Typed(parameter) => {
                    match peeled(&parameter.ty) {
                        Type::Reference(state) if index == 0 && state.mutability.is_some() => refusals.at(
                            state,
                            format!(
                                "a task cannot borrow the state of its worker yet: write `{0}` instead of `{1}`, \
                                 or an `#[hatchery::actor]` that keeps the `{0}`",
                                written(&state.elem),
                                written(state)
                            ),
                        ),
                        ty => refusals.of_parameter(ty),
                    }
                    parameters.push((*parameter.ty).clone());
                }
            }
        }
        let result = result_of(&function.sig);
        refusals.of_result(&result);
        let refusals = match has_a_type(&function.sig) {
            true => refusals,
            false => refusals.none_or(Refusals::default())?,
        };

        let (attributes, of_function) = function.attrs.drain(..).partition(belongs_to_constant);
        function.attrs = of_function;
        let visibility = std::mem::replace(&mut function.vis, Visibility::Inherited);
        Ok((Task { attributes, visibility, function, parameters, result }, refusals))
    }

    /// What is there instead of a task that was refused, so that those who call and spawn it are not refused, too.
    fn stand_in(&self) -> TokenStream {
        let Task { attributes, visibility, function, parameters, result } = self;
        let name = &function.sig.ident;
        let args = as_one(&parameters.iter().map(|ty| quote!(#ty)).collect::<Vec<_>>());
        let pointer = match function.sig.asyncness {
            None => quote!(fn(#(#parameters),*) -> #result),
            Some(_) => quote!(fn(#(#parameters),*) -> ::hatchery::__private::BoxFuture<#result>),
        };
        let ignored = parameters.iter().map(|_| quote!(_));
        quote! {
            #(#attributes)*
            #[allow(dead_code, non_upper_case_globals, reason = "it would be a task, but for the error")]
            #visibility const #name: ::hatchery::Task<#args, #result, #pointer> =
                ::hatchery::Task::refused((|#(#ignored),*| ::core::unreachable!()) as #pointer);
        }
    }

    fn constant(&self) -> TokenStream {
        let Task { attributes, visibility, function, parameters, result } = self;
        let name = &function.sig.ident;
        let full_name = name.unraw().to_string();
        let args = as_one(&parameters.iter().map(|ty| quote!(#ty)).collect::<Vec<_>>());
        let must_travel = self.must_travel();
        let (pointer, callable, run) = self.entry_points();
        let packed = self.packed();
        let encode = self.encode(&args);
        let decode = self.decode();
        // `line!()` reports where its own token stands, so these stand where the function does.
        let place = quote_spanned!(name.span()=> ::core::file!(), ::core::line!(), ::core::column!());
        quote! {
            #(#attributes)*
            #[allow(non_upper_case_globals, reason = "a task is called by the name of its function")]
            #visibility const #name: ::hatchery::Task<#args, #result, #pointer> = {
                #[allow(
                    clippy::missing_const_for_fn,
                    clippy::needless_pass_by_value,
                    clippy::unused_async,
                    reason = "what comes from another process is owned, and a task may be async for its callers' sake"
                )]
                #function
                #must_travel
                #run
                #packed
                #encode
                #decode
                static __ENTRY: ::hatchery::__private::TaskEntry = ::hatchery::__private::TaskEntry::new(
                    ::core::concat!(::core::module_path!(), "::", #full_name),
                    ::hatchery::__private::Place::new(#place),
                    __RUN,
                    __PACKED,
                );
                ::hatchery::__private::inventory::submit! { ::hatchery::__private::HostedTask(&__ENTRY) }
                ::hatchery::Task::new(
                    &__ENTRY,
                    #callable as #pointer,
                    __encode,
                    __decode,
                    __encode_packed,
                    __decode_packed,
                )
            };
        }
    }

    /// Names for the parameters.
    fn arguments(&self) -> Vec<syn::Ident> {
        (0..self.parameters.len()).map(|index| format_ident!("__arg{index}")).collect()
    }

    /// What the parameters are encoded as.
    fn encoded(&self) -> TokenStream {
        let types = self.parameters.iter();
        let types =
            types.map(|ty| if is_bytes(ty) { quote!(::hatchery::__private::ByteVec) } else { quote!(#ty) });
        as_one(&types.collect::<Vec<_>>())
    }

    /// What the function is given of its decoded arguments.
    fn passed(&self) -> impl Iterator<Item = TokenStream> {
        let arguments = self.arguments().into_iter().zip(&self.parameters);
        arguments.map(|(argument, ty)| if is_bytes(ty) { quote!(#argument.0) } else { quote!(#argument) })
    }

    /// What is encoded of its result.
    fn value(&self) -> TokenStream {
        if is_bytes(&self.result) {
            quote!(&::hatchery::__private::ByteSlice(&__result))
        } else {
            quote!(&__result)
        }
    }

    /// How a worker runs it where many lie in a row; an async one is run alone.
    fn packed(&self) -> TokenStream {
        if self.function.sig.asyncness.is_some() {
            return quote! {
                const __PACKED: ::core::option::Option<::hatchery::__private::PackedRun> =
                    ::core::option::Option::None;
            };
        }
        let name = &self.function.sig.ident;
        let (encoded, arguments, value) = (self.encoded(), self.arguments(), self.value());
        let pattern = as_one(&arguments.iter().map(|argument| quote!(#argument)).collect::<Vec<_>>());
        let passed = self.passed();
        quote! {
            fn __run_packed(
                __bytes: &[u8],
                __out: &mut ::std::vec::Vec<u8>,
            ) -> ::hatchery::__private::PackedOutcome {
                let __args = {
                    use ::hatchery::__private::{CannotDecode as _, Decodes as _};
                    (&::hatchery::__private::Decoding::<#encoded>::new()).decoded_slice(__bytes)
                };
                match __args {
                    ::core::result::Result::Ok(#pattern) => {
                        let __result = #name(#(#passed),*);
                        ::hatchery::__private::PackedOutcome::value({
                            use ::hatchery::__private::{CannotEncode as _, Encodes as _};
                            (&::hatchery::__private::Encoding(#value)).encoded_onto(__out)
                        })
                    }
                    ::core::result::Result::Err(__error) => {
                        ::hatchery::__private::PackedOutcome::undecodable(&__error)
                    }
                }
            }
            const __PACKED: ::core::option::Option<::hatchery::__private::PackedRun> =
                ::core::option::Option::Some(__run_packed);
        }
    }

    /// The type of the function as callers see it, the function they get, and the one a worker runs.
    fn entry_points(&self) -> (TokenStream, TokenStream, TokenStream) {
        let Task { function, parameters, result, .. } = self;
        let name = &function.sig.ident;
        let at_name = shown_at(name.span());
        let arguments = self.arguments();
        let encoded = self.encoded();
        let pattern = as_one(&arguments.iter().map(|argument| quote!(#argument)).collect::<Vec<_>>());
        let passed = self.passed();
        let failed =
            if is_result(result) { quote!(::core::result::Result::is_err(&__result)) } else { quote!(false) };
        let value = self.value();
        let (callable, wait) = if function.sig.asyncness.is_some() {
            (quote!(__boxed), quote!(.await))
        } else {
            (quote!(#name), TokenStream::new())
        };
        // The encoded arguments, which may be large, are gone before the task runs.
        let body = quote! {
            let __args = {
                use ::hatchery::__private::{CannotDecode as _, Decodes as _};
                (&::hatchery::__private::Decoding::<#encoded>::new()).decoded(__body)
            };
            match __args {
                ::core::result::Result::Ok(#pattern) => {
                    let __result = #callable(#(#passed),*) #wait;
                    let __encoded = {
                        use ::hatchery::__private::{CannotEncode as _, Encodes as _};
                        (&::hatchery::__private::Encoding(#value)).encoded()
                    };
                    ::hatchery::__private::TaskOutcome::value(__encoded, #failed)
                }
                ::core::result::Result::Err(__error) => {
                    ::hatchery::__private::TaskOutcome::undecodable(&__error)
                }
            }
        };
        if function.sig.asyncness.is_none() {
            let run = quote! {
                fn __run(__body: ::hatchery::__private::Body) -> ::hatchery::__private::TaskOutcome { #body }
                const __RUN: ::hatchery::__private::TaskRun = ::hatchery::__private::TaskRun::Sync(__run);
            };
            return (quote!(fn(#(#parameters),*) -> #result), callable, run);
        }
        // A future that is not `Send` fails in this one place, shown at the name of the function.
        let boxed = quote_spanned! {at_name=>
            fn __boxed(#(#arguments: #parameters),*) -> ::hatchery::__private::BoxFuture<#result> {
                ::std::boxed::Box::pin(#name(#(#arguments),*))
            }
        };
        let run = quote! {
            #boxed
            fn __run(
                __body: ::hatchery::__private::Body,
            ) -> ::hatchery::__private::BoxFuture<::hatchery::__private::TaskOutcome> {
                ::std::boxed::Box::pin(async move { #body })
            }
            const __RUN: ::hatchery::__private::TaskRun = ::hatchery::__private::TaskRun::Async(__run);
        };
        (quote!(fn(#(#parameters),*) -> ::hatchery::__private::BoxFuture<#result>), callable, run)
    }

    /// Says of each type that it must travel, where it is written.
    fn must_travel(&self) -> TokenStream {
        let types = self.parameters.iter().chain([&self.result]).filter(|ty| !is_bytes(ty));
        types
            .map(|ty| {
                quote_spanned! {shown_at(ty.span())=>
                    const _: fn() = ::hatchery::__private::must_travel::<#ty>;
                }
            })
            .collect()
    }

    /// The caller's half of the arguments: `Vec<u8>` leaves as a byte string.
    fn encode(&self, args: &TokenStream) -> TokenStream {
        let value = match &*self.parameters {
            [ty] if is_bytes(ty) => quote!(&::hatchery::__private::ByteSlice(__args)),
            many if many.len() > 1 && many.iter().any(is_bytes) => {
                let fields = many.iter().enumerate().map(|(index, ty)| {
                    let index = syn::Index::from(index);
                    if is_bytes(ty) {
                        quote!(::hatchery::__private::ByteSlice(&__args.#index))
                    } else {
                        quote!(&__args.#index)
                    }
                });
                quote!(&(#(#fields),*))
            }
            _ => quote!(__args),
        };
        quote! {
            fn __encode(
                __args: &#args,
            ) -> ::core::result::Result<::hatchery::__private::Body, ::hatchery::__private::EncodeError> {
                use ::hatchery::__private::{CannotEncode as _, Encodes as _};
                (&::hatchery::__private::Encoding(#value)).encoded()
            }
            fn __encode_packed(
                __args: &#args,
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

    /// The caller's half of the result.
    fn decode(&self) -> TokenStream {
        let result = &self.result;
        let decoded = if is_bytes(result) {
            quote!(::hatchery::__private::take_bytes(__body))
        } else {
            quote! {
                use ::hatchery::__private::{CannotDecode as _, Decodes as _};
                (&::hatchery::__private::Decoding::<#result>::new()).decoded(__body)
            }
        };
        let packed = if is_bytes(result) {
            quote! {
                use ::hatchery::__private::{CannotDecode as _, Decodes as _};
                (&::hatchery::__private::Decoding::<::hatchery::__private::ByteVec>::new())
                    .decoded_slice(__bytes)
                    .map(|__result| __result.0)
            }
        } else {
            quote! {
                use ::hatchery::__private::{CannotDecode as _, Decodes as _};
                (&::hatchery::__private::Decoding::<#result>::new()).decoded_slice(__bytes)
            }
        };
        quote! {
            fn __decode(
                __body: ::hatchery::__private::Body,
            ) -> ::core::result::Result<#result, ::hatchery::__private::DecodeError> {
                #decoded
            }
            fn __decode_packed(
                __bytes: &[u8],
            ) -> ::core::result::Result<#result, ::hatchery::__private::DecodeError> {
                #packed
            }
        }
    }
}

/// Whether the function has a type that can be written for a constant: neither generic, nor with a `self`, nor with
/// types that stand for others.
fn has_a_type(signature: &Signature) -> bool {
    let types = signature.inputs.iter().map(|input| match input {
        FnArg::Receiver(_) => None,
        FnArg::Typed(parameter) => Some(parameter.ty.to_token_stream()),
    });
    let result = std::iter::once(Some(signature.output.to_token_stream()));
    signature.generics.params.is_empty()
        && signature.variadic.is_none()
        && types.chain(result).all(|ty| ty.is_some_and(|ty| !has_stand_ins(ty)))
}

/// Whether `impl Trait`, `!` or `Self` is among these tokens.
fn has_stand_ins(tokens: TokenStream) -> bool {
    let mut after_arrow = false;
    tokens.into_iter().any(|token| match token {
        TokenTree::Ident(word) => word == "impl" || word == "Self",
        TokenTree::Group(group) => has_stand_ins(group.stream()),
        TokenTree::Punct(punct) => {
            let found = after_arrow && punct.as_char() == '!';
            after_arrow = punct.as_char() == '>';
            found
        }
        TokenTree::Literal(_) => false,
    })
}

/// Documentation, conditions and lint levels go to the constant (and reach the function in it); `#[inline]`,
/// `#[must_use]`, `#[tracing::instrument]` and the like stay with the function.
fn belongs_to_constant(attribute: &Attribute) -> bool {
    const OF_CONSTANT: [&str; 8] = ["doc", "cfg", "deprecated", "allow", "expect", "warn", "deny", "forbid"];
    let known = |path: &syn::Path| OF_CONSTANT.iter().any(|name| path.is_ident(name));
    if matches!(attribute.style, syn::AttrStyle::Inner(_)) {
        return false;
    }
    if !attribute.path().is_ident("cfg_attr") {
        return known(attribute.path());
    }
    attribute
        .parse_args_with(Punctuated::<Meta, Token![,]>::parse_terminated)
        .is_ok_and(|metas| metas.iter().skip(1).all(|meta| known(meta.path())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::travel::{assert_contains, file_without_spaces, messages_of, tokens, without_spaces};

    fn expanded(item: &str) -> String {
        file_without_spaces(expand(TokenStream::new(), tokens(item)))
    }

    fn refusal(item: &str) -> String {
        messages_of(
            Task::read(&TokenStream::new(), tokens(item)).and_then(|(_, refusals)| refusals.none_or(())),
        )
    }

    #[test]
    fn a_function_becomes_a_constant_of_its_name() {
        let text = expanded("/// Squares.\n #[inline] pub(crate) fn square(x: u64) -> u64 { x * x }");
        assert!(text.starts_with("#[doc"), "{text}");
        assert_contains(&text, "pub(crate) const square: ::hatchery::Task<u64, u64, fn(u64) -> u64> = {");
        assert_contains(&text, "#[inline] fn square(x: u64) -> u64 { x * x }");
        assert_contains(&text, "TaskRun::Sync(__run)");
        assert_contains(&text, "concat!(::core::module_path!(), \"::\", \"square\")");
        assert_contains(
            &text,
            "::hatchery::Task::new(&__ENTRY, square as fn(u64) -> u64, __encode, __decode, __encode_packed, __decode_packed,)",
        );
    }

    #[test]
    fn parameters_make_a_tuple() {
        assert_contains(&expanded("fn hello() {}"), "const hello: ::hatchery::Task<(), (), fn() -> ()>");
        assert_contains(
            &expanded("fn mul(x: u64, (y, _): (u64, u8)) -> u64 { x * y }"),
            "Task<(u64, (u64, u8)), u64, fn(u64, (u64, u8)) -> u64>",
        );
    }

    #[test]
    fn an_async_function_is_called_boxed() {
        let text = expanded("async fn later(x: u64) -> u64 { x }");
        assert_contains(&text, "Task<u64, u64, fn(u64) -> ::hatchery::__private::BoxFuture<u64>>");
        assert_contains(&text, "TaskRun::Async(__run)");
        assert_contains(&text, "__boxed(__arg0).await");
    }

    #[test]
    fn a_raw_name_is_registered_as_it_is_spoken() {
        let text = expanded("fn r#move() {}");
        assert_contains(&text, "const r#move:");
        assert_contains(&text, "\"move\"");
    }

    #[test]
    fn byte_vectors_travel_as_byte_strings() {
        let text = expanded("fn shrink(side: u32, image: Vec<u8>) -> Vec<u8> { image }");
        assert_contains(&text, "Decoding::<(u32, ::hatchery::__private::ByteVec)>");
        assert_contains(&text, "Encoding(&(&__args.0, ::hatchery::__private::ByteSlice(&__args.1)))");
        assert_contains(&text, "shrink(__arg0, __arg1.0)");
        assert_contains(&text, "Encoding(&::hatchery::__private::ByteSlice(&__result))");
        assert_contains(&text, "take_bytes(__body)");
        assert_contains(&expanded("fn len(image: Vec<u8>) -> usize { 0 }"), "ByteSlice(__args)");
        assert!(!expanded("fn f(x: u8) -> Result<Vec<u8>, String> { g(x) }").contains("Byte"));
    }

    #[test]
    fn a_returned_err_is_a_failure() {
        assert_contains(&expanded("fn f() -> hatchery::Result<()> { Ok(()) }"), "Result::is_err(&__result)");
        assert!(!expanded("fn f() -> Option<u8> { None }").contains("is_err"));
    }

    #[test]
    fn attributes_go_where_they_mean_something() {
        let text = expanded(
            "#[cfg(unix)] #[cfg_attr(docsrs, doc(cfg(unix)))] #[expect(dead_code)] #[tracing::instrument] \
             #[cfg_attr(unix, inline)] fn f() {}",
        );
        let (constant, function) = text.split_once("constf").unwrap();
        for attribute in ["cfg(unix)", "docsrs", "dead_code"] {
            assert!(constant.contains(attribute) && !function.contains(attribute), "{attribute}: {text}");
        }
        for attribute in ["tracing::instrument", "inline"] {
            assert!(function.contains(attribute) && !constant.contains(attribute), "{attribute}: {text}");
        }
    }

    #[test]
    fn every_mistake_says_what_to_write() {
        for (item, why) in [
            ("fn f<T>(x: T) {}", "write what `T` stands for"),
            ("fn f<const N: usize>() {}", "write what `N` stands for"),
            ("fn f<'a>(x: u8) {}", "write owned types"),
            ("fn f() where u8: Copy {}", "leave it out"),
            ("fn f(x: &str) {}", "write `String` instead of `&str`"),
            ("fn f(x: &[u8]) {}", "write `Vec<u8>`"),
            ("fn f(x: u8, y: &mut Order) {}", "write `Order`"),
            ("fn f(x: impl Display) {}", "write the type itself"),
            ("fn f() -> &'static str { g() }", "a result travels"),
            ("fn f() -> impl Display { 1 }", "write the type itself"),
            ("fn f() -> Result<(), Box<dyn Error>> { g() }", "or `hatchery::Error`"),
            ("fn f() -> ! { loop {} }", "write `()`"),
            ("fn f(model: &mut Model, x: u8) {}", "an `#[hatchery::actor]` that keeps the `Model`"),
            ("fn f(cx: &Context) {}", "`hatchery::current()`"),
            ("fn f(&self) {}", "a task has no `self`"),
            ("fn f(self: Box<Self>) {}", "a task has no `self`"),
            ("unsafe fn f() {}", "cannot be `unsafe`"),
            ("extern \"C\" fn f() {}", "cannot be `extern`"),
            ("const fn f() {}", "cannot be `const`"),
            ("unsafe extern \"C\" fn f(x: u8, ...) {}", "a variable number of parameters"),
            ("struct F;", "a task is a function"),
        ] {
            let refusal = refusal(item);
            assert!(refusal.contains(why), "{item}: {refusal:?} does not say {why:?}");
            assert!(!refusal.starts_with(char::is_uppercase), "{refusal:?}");
        }
    }

    #[test]
    fn all_mistakes_are_told_at_once_beside_the_function() {
        let item = "fn f<T>(x: T, y: &str) {}";
        assert_eq!(refusal(item).lines().count(), 2);
        let text = expand(TokenStream::new(), tokens(item)).to_string();
        assert_eq!(text.matches("compile_error").count(), 2, "{text}");
        assert!(text.ends_with(&tokens(item).to_string()), "{text}");
    }

    #[test]
    fn a_stand_in_has_the_type_of_the_task_that_was_refused() {
        let text =
            expand(TokenStream::new(), tokens("pub async fn f(x: &str, y: u8) -> u8 { y }")).to_string();
        assert_eq!(text.matches("compile_error").count(), 1, "{text}");
        assert_contains(
            &without_spaces(&text),
            "pub const f: ::hatchery::Task<
                (&str, u8), u8, fn(&str, u8) -> ::hatchery::__private::BoxFuture<u8>
            > = ::hatchery::Task::refused((|_, _|",
        );
        for item in [
            "fn f(x: impl Display) {}",
            "fn f() -> ! { loop {} }",
            "fn f(&self) {}",
            "fn f(x: Box<Self>, y: &u8) {}",
        ] {
            let text = expand(TokenStream::new(), tokens(item)).to_string();
            assert!(text.ends_with(&tokens(item).to_string()), "{text}");
        }
    }

    #[test]
    fn every_type_must_travel() {
        let text = expanded("fn f(x: Order, y: Vec<u8>) -> Receipt { g() }");
        assert_eq!(text.matches("must_travel::<").count(), 2, "{text}");
        assert_contains(&text, "must_travel::<Order>;");
        assert_contains(&text, "must_travel::<Receipt>;");
    }

    #[test]
    fn more_parameters_than_serde_knows_are_refused() {
        let parameters: String = (0..17).map(|index| format!("p{index}: u8, ")).collect();
        assert!(refusal(&format!("fn f({parameters}) {{}}")).contains("write a struct"));
    }

    #[test]
    fn options_are_refused() {
        let text = expand(quote!(name = "x"), tokens("fn f() {}")).to_string();
        assert!(text.contains("takes no options yet"), "{text}");
    }
}
