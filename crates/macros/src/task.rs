//! `#[task]`: a function becomes a constant of its name, typed by its signature and registered so that another
//! process finds it. One whose first parameter is a reference borrows the state of its worker.

use proc_macro2::{TokenStream, TokenTree};
use quote::{ToTokens, format_ident, quote, quote_spanned};
use syn::ext::IdentExt;
use syn::{
    Attribute, FnArg, Item, ItemFn, Meta, Signature, Token, Type, TypeReference, Visibility,
    punctuated::Punctuated,
};

use crate::arguments::{Arguments, must_travel};
use crate::travel::{
    Refusals, is_bytes, is_context, is_result, last_name, peeled, refuse_options, result_of, shown_at,
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
    /// All of its parameters.
    parameters: Vec<Type>,
    /// What it borrows of its worker: the type behind its first parameter, if that is a reference.
    state: Option<Type>,
    /// Its parameters that travel: the others.
    arguments: Arguments,
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
        let (mut parameters, mut state, mut arguments) = (Vec::new(), None, Vec::new());
        for (index, input) in function.sig.inputs.iter().enumerate() {
            let parameter = match input {
                FnArg::Receiver(receiver) => {
                    refusals.at(
                        receiver,
                        "a task has no `self`: write a free function, or `#[hatchery::actor]` on the impl block",
                    );
                    continue;
                }
                FnArg::Typed(parameter) => parameter,
            };
            parameters.push((*parameter.ty).clone());
            match peeled(&parameter.ty) {
                ty if is_context(ty) => refusals.at(
                    parameter,
                    "a task has no `Context`: leave it out, `hatchery::current()` says where it runs",
                ),
                Type::Reference(reference) if index == 0 && is_of_state(reference) => {
                    refusals.of_state(&reference.elem);
                    state = Some((*reference.elem).clone());
                    continue;
                }
                Type::Reference(reference) if reference.mutability.is_some() => {
                    refusals.at(reference, borrows_wrongly(reference, index, state.as_ref()));
                }
                ty => refusals.of_parameter(ty),
            }
            arguments.push((*parameter.ty).clone());
        }
        refusals.of_many(&function.sig, arguments.len());
        let result = result_of(&function.sig);
        refusals.of_result(&result);
        let refusals = match has_a_type(&function.sig) {
            true => refusals,
            false => refusals.none_or(Refusals::default())?,
        };

        let (attributes, of_function) = function.attrs.drain(..).partition(belongs_to_constant);
        function.attrs = of_function;
        let visibility = std::mem::replace(&mut function.vis, Visibility::Inherited);
        let arguments = Arguments(arguments);
        Ok((Task { attributes, visibility, function, parameters, state, arguments, result }, refusals))
    }

    /// The type of the constant, and of the function that it derefs to.
    fn types(&self) -> (TokenStream, TokenStream) {
        let Task { parameters, result, .. } = self;
        let args = self.arguments.as_one();
        let returned = match (self.is_async(), &self.state) {
            (false, _) => quote!(#result),
            (true, None) => quote!(::hatchery::__private::BoxFuture<#result>),
            (true, Some(_)) => quote!(::hatchery::__private::LocalFuture<'_, #result>),
        };
        let pointer = quote!(fn(#(#parameters),*) -> #returned);
        match &self.state {
            None => (quote!(::hatchery::Task<#args, #result, #pointer>), pointer),
            Some(state) => (quote!(::hatchery::TaskOn<#state, #args, #result, #pointer>), pointer),
        }
    }

    fn is_async(&self) -> bool {
        self.function.sig.asyncness.is_some()
    }

    /// What is there instead of a task that was refused, so that those who call and spawn it are not refused, too.
    fn stand_in(&self) -> TokenStream {
        let Task { attributes, visibility, function, parameters, state, .. } = self;
        let name = &function.sig.ident;
        let (ty, pointer) = self.types();
        let ignored = parameters.iter().map(|_| quote!(_));
        let made = match state {
            None => quote!(::hatchery::Task::refused),
            Some(_) => quote!(::hatchery::TaskOn::refused),
        };
        quote! {
            #(#attributes)*
            #[allow(dead_code, non_upper_case_globals, reason = "it would be a task, but for the error")]
            #visibility const #name: #ty = #made((|#(#ignored),*| ::core::unreachable!()) as #pointer);
        }
    }

    fn constant(&self) -> TokenStream {
        let Task { attributes, visibility, function, arguments, result, .. } = self;
        let name = &function.sig.ident;
        let full_name = name.unraw().to_string();
        let (ty, pointer) = self.types();
        let must_travel = [arguments.must_travel(), must_travel(result)];
        let (callable, runs) = self.entry_points();
        let (run, packed, made) = match &self.state {
            None if self.is_async() => (
                quote!(::hatchery::__private::TaskRun::Async(__run)),
                quote!(::core::option::Option::None),
                quote!(::hatchery::Task::new),
            ),
            None => (
                quote!(::hatchery::__private::TaskRun::Sync(__run)),
                quote!(::core::option::Option::Some(__run_packed)),
                quote!(::hatchery::Task::new),
            ),
            Some(state) => {
                let (run, packed) = if self.is_async() {
                    (quote!(Async), quote!(::core::option::Option::None))
                } else {
                    (quote!(Sync), quote!(::core::option::Option::Some(__run_packed)))
                };
                let on_state = quote! {
                    ::hatchery::__private::TaskRun::OnState(::hatchery::__private::OnState {
                        state: ::hatchery::__private::StateType::of::<#state>(),
                        run: ::hatchery::__private::RunOnState::#run(__run),
                        packed: #packed,
                    })
                };
                (on_state, quote!(::core::option::Option::None), quote!(::hatchery::TaskOn::new))
            }
        };
        let packs = self.packed();
        let (encode, encode_packed) = (arguments.encode(), arguments.encode_packed());
        let decode = self.decode();
        // `line!()` reports where its own token stands, so these stand where the function does.
        let place = quote_spanned!(name.span()=> ::core::file!(), ::core::line!(), ::core::column!());
        quote! {
            #(#attributes)*
            #[allow(non_upper_case_globals, reason = "a task is called by the name of its function")]
            #visibility const #name: #ty = {
                #[allow(
                    clippy::missing_const_for_fn,
                    clippy::needless_pass_by_ref_mut,
                    clippy::needless_pass_by_value,
                    clippy::ptr_arg,
                    clippy::trivially_copy_pass_by_ref,
                    clippy::unused_async,
                    reason = "what comes from another process is owned, what is borrowed is the state as it is, and a \
                              task may be async for its callers' sake"
                )]
                #function
                #(#must_travel)*
                #runs
                #packs
                #encode
                #encode_packed
                #decode
                static __ENTRY: ::hatchery::__private::TaskEntry = ::hatchery::__private::TaskEntry::new(
                    ::core::concat!(::core::module_path!(), "::", #full_name),
                    ::hatchery::__private::Place::new(#place),
                    #run,
                    #packed,
                );
                ::hatchery::__private::inventory::submit! { ::hatchery::__private::HostedTask(&__ENTRY) }
                #made(
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

    /// What is encoded of its result.
    fn value(&self) -> TokenStream {
        if is_bytes(&self.result) {
            quote!(&::hatchery::__private::ByteString::in_row(__result))
        } else {
            quote!(&__result)
        }
    }

    /// How what runs it is given the state, if it borrows any: a parameter, how it is made what the function borrows (or else
    /// the task's outcome is this one), and what the function is given.
    fn lent(&self, outcome: &TokenStream) -> [TokenStream; 3] {
        let Some(state) = &self.state else { return Default::default() };
        [
            quote!(__state: &mut dyn ::core::any::Any,),
            quote! {
                let ::core::option::Option::Some(__state) =
                    <dyn ::core::any::Any>::downcast_mut::<#state>(__state)
                else {
                    return #outcome;
                };
            },
            quote!(__state,),
        ]
    }

    /// How a worker runs it where many lie in a row; an async one is run alone.
    fn packed(&self) -> TokenStream {
        if self.is_async() {
            return TokenStream::new();
        }
        let name = &self.function.sig.ident;
        let (encoded, pattern, value) = (self.arguments.encoded(), self.arguments.pattern(), self.value());
        let passed = self.arguments.passed();
        let [parameter, lends, lent] = self.lent(&quote!(::hatchery::__private::PackedOutcome::refused()));
        quote! {
            fn __run_packed(
                __bytes: &[u8],
                __out: &mut ::std::vec::Vec<u8>,
                #parameter
            ) -> ::hatchery::__private::PackedOutcome {
                #lends
                let __args = {
                    use ::hatchery::__private::{CannotDecode as _, Decodes as _};
                    (&::hatchery::__private::Decoding::<#encoded>::new()).decoded_slice(__bytes)
                };
                match __args {
                    ::core::result::Result::Ok(#pattern) => {
                        let __result = #name(#lent #(#passed),*);
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
        }
    }

    /// The function that callers get, and the one that a worker runs.
    fn entry_points(&self) -> (TokenStream, TokenStream) {
        let Task { function, parameters, state, arguments, result, .. } = self;
        let name = &function.sig.ident;
        let at_name = shown_at(name.span());
        let (decoded, pattern) = (arguments.decoded(), arguments.pattern());
        let passed = arguments.passed();
        let outcome = if is_result(result) {
            quote! {
                match &__result {
                    ::core::result::Result::Ok(_) => {
                        ::hatchery::__private::TaskOutcome::value(__encoded, false)
                    }
                    ::core::result::Result::Err(__error) => {
                        ::hatchery::__private::TaskOutcome::error(__encoded, {
                            use ::hatchery::__private::{
                                InWordsByDebug as _, InWordsByDisplay as _, WithoutWords as _,
                            };
                            (&&&::hatchery::__private::InWords(__error)).in_words()
                        })
                    }
                }
            }
        } else {
            quote!(::hatchery::__private::TaskOutcome::value(__encoded, false))
        };
        let value = self.value();
        let (callable, wait) = if self.is_async() {
            (quote!(__boxed), quote!(.await))
        } else {
            (quote!(#name), TokenStream::new())
        };
        let [parameter, lends, lent] = self.lent(&quote!(::hatchery::__private::TaskOutcome::refused()));
        // The encoded arguments, which may be large, are gone before the task runs.
        let body = quote! {
            #lends
            let __args = #decoded;
            match __args {
                ::core::result::Result::Ok(#pattern) => {
                    let __result = #callable(#lent #(#passed),*) #wait;
                    let __encoded = {
                        use ::hatchery::__private::{CannotEncode as _, Encodes as _};
                        (&::hatchery::__private::Encoding(#value)).encoded()
                    };
                    #outcome
                }
                ::core::result::Result::Err(__error) => {
                    ::hatchery::__private::TaskOutcome::undecodable(&__error)
                }
            }
        };
        if !self.is_async() {
            let run = quote! {
                fn __run(
                    __body: ::hatchery::__private::Body,
                    #parameter
                ) -> ::hatchery::__private::TaskOutcome {
                    #body
                }
            };
            return (callable, run);
        }
        let names: Vec<_> = (0..parameters.len()).map(|index| format_ident!("__arg{index}")).collect();
        let (boxed, outcome) = match state {
            None => (
                quote!(::hatchery::__private::BoxFuture<#result>),
                quote!(::hatchery::__private::BoxFuture<::hatchery::__private::TaskOutcome>),
            ),
            // It stays on its thread, as the state does.
            Some(_) => (
                quote!(::hatchery::__private::LocalFuture<'_, #result>),
                quote!(::hatchery::__private::LocalFuture<'_, ::hatchery::__private::TaskOutcome>),
            ),
        };
        // A future that is not `Send`, but has to be, fails in this one place, shown at the name of the function.
        let boxed = quote_spanned! {at_name=>
            fn __boxed(#(#names: #parameters),*) -> #boxed {
                ::std::boxed::Box::pin(#name(#(#names),*))
            }
        };
        let run = quote! {
            #boxed
            fn __run(__body: ::hatchery::__private::Body, #parameter) -> #outcome {
                ::std::boxed::Box::pin(async move { #body })
            }
        };
        (callable, run)
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
                (&::hatchery::__private::Decoding::<::hatchery::__private::ByteString>::new())
                    .decoded_slice(__bytes)
                    .map(::hatchery::__private::ByteString::into_vec)
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

/// Whether a reference is one to state, and not a slip for an owned parameter: those without a size are none.
fn is_of_state(reference: &TypeReference) -> bool {
    let has_size = match peeled(&reference.elem) {
        Type::Slice(_) | Type::TraitObject(_) | Type::ImplTrait(_) | Type::Reference(_) => false,
        Type::Path(path) => {
            !["str", "Path", "OsStr", "CStr"].contains(&last_name(&path.path).unwrap_or_default().as_str())
        }
        _ => true,
    };
    has_size && reference.lifetime.is_none()
}

/// What to write instead of a `&mut` that is no state.
fn borrows_wrongly(reference: &TypeReference, index: usize, state: Option<&Type>) -> String {
    let (owned, written_so) = (written(&reference.elem), written(reference));
    match state {
        Some(state) => format!(
            "a worker has one state: let `#[hatchery::state]` return one that holds the `{}` and the `{owned}`, or write \
             `{owned}` instead of `{written_so}`",
            written(state)
        ),
        None if index == 0 => format!(
            "state that a task borrows has a size and no lifetime: write `&mut S` with the type that `#[hatchery::state]` \
             returns, or an owned type instead of `{written_so}`"
        ),
        None => format!(
            "the state of its worker is the first parameter of a task: put it there, or write `{owned}` instead of \
             `{written_so}`"
        ),
    }
}

/// Whether the function has a type that can be written for a constant: neither generic, nor with a `self`, nor with
/// types that stand for others.
pub(crate) fn has_a_type(signature: &Signature) -> bool {
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
pub(crate) fn belongs_to_constant(attribute: &Attribute) -> bool {
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
        assert_contains(&text, "Decoding::<(u32, ::hatchery::__private::ByteString)>");
        assert_contains(&text, "Encoding(&(&__args.0, ::hatchery::__private::ByteSlice(&__args.1)))");
        assert_contains(&text, "shrink(__arg0, __arg1.into_vec())");
        assert_contains(&text, "Encoding(&(&__args.0, ::hatchery::__private::ByteString::in_row(__args.1)))");
        assert_contains(&text, "Encoding(&::hatchery::__private::ByteString::in_row(__result))");
        assert_contains(&text, "take_bytes(__body)");
        assert_contains(&expanded("fn len(image: Vec<u8>) -> usize { 0 }"), "ByteSlice(__args)");
        assert!(!expanded("fn f(x: u8) -> Result<Vec<u8>, String> { g(x) }").contains("Byte"));
    }

    #[test]
    fn a_returned_err_is_a_failure() {
        assert_contains(
            &expanded("fn f() -> hatchery::Result<()> { Ok(()) }"),
            "TaskOutcome::error(__encoded,",
        );
        assert!(!expanded("fn f() -> Option<u8> { None }").contains("TaskOutcome::error"));
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
            ("fn f(x: u8, model: &mut Model) {}", "is the first parameter of a task: put it there"),
            ("fn f(x: &mut Model, y: &mut Order) {}", "one that holds the `Model` and the `Order`"),
            ("fn f(x: &mut Model, y: &Order) {}", "write `Order` instead of `&Order`"),
            ("fn f(x: &mut [u8]) {}", "instead of `&mut [u8]`"),
            ("fn f(x: &mut str) {}", "has a size"),
            ("fn f(x: &mut dyn Model) {}", "has a size"),
            ("fn f<'a>(x: &'a mut Model) {}", "cannot borrow from its caller"),
            ("fn f(x: &'static mut Model) {}", "no lifetime"),
            ("fn f(x: &mut Model<'_>) {}", "write an owned type instead of one with `'_`"),
            ("fn f<T>(x: &mut T) {}", "write what `T` stands for"),
            ("fn f(x: &mut impl Model) {}", "write `&mut S`"),
            ("fn f(x: &mut ()) {}", "`()` is no state"),
            ("fn f(&mut self, x: u8) {}", "a task has no `self`"),
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
    fn what_a_task_borrows_first_is_the_state_of_its_worker() {
        let text = expanded("fn classify(model: &mut Model, image: Vec<u8>) -> Label { model.run(&image) }");
        assert_contains(
            &text,
            "const classify: ::hatchery::TaskOn<Model, Vec<u8>, Label, fn(&mut Model, Vec<u8>) -> Label> = {",
        );
        assert_contains(&text, "TaskRun::OnState(::hatchery::__private::OnState {");
        assert_contains(&text, "StateType::of::<Model>()");
        assert_contains(&text, "RunOnState::Sync(__run)");
        assert_contains(&text, "packed: ::core::option::Option::Some(__run_packed)");
        assert_contains(&text, "classify(__state, __arg0.into_vec())");
        assert_contains(&text, "::hatchery::TaskOn::new(&__ENTRY, classify as");
        assert!(!text.contains("must_travel::<Model>"), "state does not travel: {text}");

        let text = expanded("fn looks(model: &Model) -> u8 { model.size }");
        assert_contains(&text, "TaskOn<Model, (), u8, fn(&Model) -> u8>");
        let text =
            expanded("async fn later(model: &mut (Model, Cache), x: u8, y: u8) { model.run(x, y).await }");
        assert_contains(
            &text,
            "TaskOn<(Model, Cache), (u8, u8), (),
                fn(&mut (Model, Cache), u8, u8) -> ::hatchery::__private::LocalFuture<'_, ()> >",
        );
        assert_contains(&text, "RunOnState::Async(__run)");
        assert_contains(&text, "packed: ::core::option::Option::None");
        assert_contains(&text, "__boxed(__state, __arg0, __arg1).await");
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
        let text = expand(TokenStream::new(), tokens("fn f(x: &mut Model, y: &u8) {}")).to_string();
        assert_contains(
            &without_spaces(&text),
            "const f: ::hatchery::TaskOn<Model, &u8, (), fn(&mut Model, &u8) -> ()> = ::hatchery::TaskOn::refused((|_, _|",
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
