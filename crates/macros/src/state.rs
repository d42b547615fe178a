//! `#[state]`: a function becomes a constant of its name, which a pool has each of its workers call once.

use proc_macro2::TokenStream;
use quote::{quote, quote_spanned};
use syn::ext::IdentExt;
use syn::spanned::Spanned;
use syn::{Attribute, FnArg, Item, ItemFn, Type, Visibility};

use crate::arguments::Arguments;
use crate::task::{belongs_to_constant, has_a_type};
use crate::travel::{
    Refusals, is_context, is_result, refuse_options, result_of, result_parts, shown_at, told_beside,
};

pub(crate) fn expand(options: TokenStream, item: TokenStream) -> TokenStream {
    match State::read(&options, item.clone()) {
        Ok((state, refusals)) => match refusals.none_or(()) {
            Ok(()) => state.constant(),
            Err(error) => {
                let error = error.to_compile_error();
                let stand_in = state.stand_in();
                quote!(#error #stand_in)
            }
        },
        Err(error) => told_beside(&error, &item),
    }
}

/// A function that builds what workers keep.
struct State {
    /// Of the constant: documentation, conditions and lint levels.
    attributes: Vec<Attribute>,
    visibility: Visibility,
    /// As written, with the attributes that only a function can have.
    function: ItemFn,
    arguments: Arguments,
    result: Type,
}

impl State {
    /// The function and what is wrong with it. What is so wrong that nothing can stand in for it is an error.
    fn read(options: &TokenStream, item: TokenStream) -> syn::Result<(State, Refusals)> {
        let mut function = match syn::parse2(item)? {
            Item::Fn(function) => function,
            other => {
                return Err(syn::Error::new_spanned(
                    other,
                    "state is what a function returns: write `#[hatchery::state] fn name(..) -> ..`",
                ));
            }
        };
        let mut refusals = Refusals::default();
        refusals.unless(refuse_options(options, "state", "write it alone"));
        refusals.of_signature(&function.sig, "a function that builds state");
        refusals.of_many(&function.sig, function.sig.inputs.len());
        let mut arguments = Vec::new();
        for input in &function.sig.inputs {
            match input {
                FnArg::Receiver(receiver) => refusals.at(
                    receiver,
                    "a function that builds state has no `self`: write a free function",
                ),
                FnArg::Typed(parameter) if is_context(&parameter.ty) => refusals.at(
                    parameter,
                    "a function that builds state has no `Context`: leave it out, `hatchery::current()` says where it runs",
                ),
                FnArg::Typed(parameter) => {
                    refusals.of_parameter(&parameter.ty);
                    arguments.push((*parameter.ty).clone());
                }
            }
        }
        let result = result_of(&function.sig);
        match result_parts(&result) {
            Some((state, _)) if is_result(&result) => refusals.of_state(state),
            _ if matches!(function.sig.output, syn::ReturnType::Default) => refusals.at(
                &function.sig.ident,
                "state is what the function returns: write `-> S`, or `-> hatchery::Result<S>`",
            ),
            _ => refusals.of_state(&result),
        }
        let refusals = match has_a_type(&function.sig) {
            true => refusals,
            false => refusals.none_or(Refusals::default())?,
        };

        let (attributes, of_function) = function.attrs.drain(..).partition(belongs_to_constant);
        function.attrs = of_function;
        let visibility = std::mem::replace(&mut function.vis, Visibility::Inherited);
        Ok((State { attributes, visibility, function, arguments: Arguments(arguments), result }, refusals))
    }

    /// The type of the state.
    fn state(&self) -> TokenStream {
        let result = &self.result;
        if is_result(result) {
            quote!(<#result as ::hatchery::__private::ResultParts>::Ok)
        } else {
            quote!(#result)
        }
    }

    fn is_async(&self) -> bool {
        self.function.sig.asyncness.is_some()
    }

    /// The type of the constant, and of the function that it derefs to.
    fn types(&self) -> (TokenStream, TokenStream) {
        let (result, parameters) = (&self.result, &self.arguments.0);
        let (state, args) = (self.state(), self.arguments.as_one());
        let pointer = if self.is_async() {
            quote!(fn(#(#parameters),*) -> ::hatchery::__private::LocalFuture<'static, #result>)
        } else {
            quote!(fn(#(#parameters),*) -> #result)
        };
        (quote!(::hatchery::State<#state, #args, #pointer>), pointer)
    }

    /// What is there instead of one that was refused, so that those who name it are not refused, too.
    fn stand_in(&self) -> TokenStream {
        let State { attributes, visibility, function, arguments, .. } = self;
        let name = &function.sig.ident;
        let (ty, pointer) = self.types();
        let ignored = arguments.0.iter().map(|_| quote!(_));
        quote! {
            #(#attributes)*
            #[allow(dead_code, non_upper_case_globals, reason = "it would build state, but for the error")]
            #visibility const #name: #ty =
                ::hatchery::State::refused((|#(#ignored),*| ::core::unreachable!()) as #pointer);
        }
    }

    fn constant(&self) -> TokenStream {
        let State { attributes, visibility, function, arguments, .. } = self;
        let name = &function.sig.ident;
        let full_name = name.unraw().to_string();
        let (ty, pointer) = self.types();
        let state = self.state();
        let must_travel = arguments.must_travel();
        let (callable, builds) = self.entry_points();
        let build = if self.is_async() { quote!(Async) } else { quote!(Sync) };
        let encode = arguments.encode();
        // `line!()` reports where its own token stands, so these stand where the function does.
        let place = quote_spanned!(name.span()=> ::core::file!(), ::core::line!(), ::core::column!());
        quote! {
            #(#attributes)*
            #[allow(non_upper_case_globals, reason = "it is called by the name of its function")]
            #visibility const #name: #ty = {
                #[allow(
                    clippy::missing_const_for_fn,
                    clippy::needless_pass_by_value,
                    clippy::unnecessary_wraps,
                    clippy::unused_async,
                    reason = "what comes from another process is owned, and a function that builds state may be async or \
                              able to fail for its callers' sake"
                )]
                #function
                #must_travel
                #builds
                #encode
                static __ENTRY: ::hatchery::__private::StateEntry = ::hatchery::__private::StateEntry::new(
                    ::core::concat!(::core::module_path!(), "::", #full_name),
                    ::hatchery::__private::Place::new(#place),
                    ::hatchery::__private::StateType::of::<#state>(),
                    ::hatchery::__private::Build::#build(__build),
                );
                ::hatchery::__private::inventory::submit! { ::hatchery::__private::HostedState(&__ENTRY) }
                ::hatchery::State::new(&__ENTRY, #callable as #pointer, __encode)
            };
        }
    }

    /// The function that callers get, and the one that a worker calls.
    fn entry_points(&self) -> (TokenStream, TokenStream) {
        let State { function, arguments, result, .. } = self;
        let name = &function.sig.ident;
        let (names, parameters) = (arguments.names(), &arguments.0);
        let (decoded, pattern, passed) = (arguments.decoded(), arguments.pattern(), arguments.passed());
        let wait = self.is_async().then(|| quote!(.await));
        // An error that cannot be shown is told where the result is written.
        let at_result = shown_at(result.span());
        let returned = if is_result(result) {
            quote_spanned!(at_result=> __returned)
        } else {
            quote!(::core::result::Result::<_, ::hatchery::Never>::Ok(__returned))
        };
        let built = quote_spanned!(at_result=> ::hatchery::__private::built(#returned));
        let body = quote! {
            let __args = #decoded;
            match __args {
                ::core::result::Result::Ok(#pattern) => {
                    let __returned = #name(#(#passed),*) #wait;
                    #built
                }
                ::core::result::Result::Err(__error) => ::hatchery::__private::not_built(__error),
            }
        };
        if !self.is_async() {
            let build = quote! {
                fn __build(__body: ::hatchery::__private::Body) -> ::hatchery::__private::Built { #body }
            };
            return (quote!(#name), build);
        }
        let build = quote! {
            fn __boxed(
                #(#names: #parameters),*
            ) -> ::hatchery::__private::LocalFuture<'static, #result> {
                ::std::boxed::Box::pin(#name(#(#names),*))
            }
            fn __build(
                __body: ::hatchery::__private::Body,
            ) -> ::hatchery::__private::LocalFuture<'static, ::hatchery::__private::Built> {
                ::std::boxed::Box::pin(async move { #body })
            }
        };
        (quote!(__boxed), build)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::travel::{assert_contains, file_without_spaces, messages_of, tokens};

    fn expanded(item: &str) -> String {
        file_without_spaces(expand(TokenStream::new(), tokens(item)))
    }

    fn refusal(item: &str) -> String {
        messages_of(
            State::read(&TokenStream::new(), tokens(item)).and_then(|(_, refusals)| refusals.none_or(())),
        )
    }

    #[test]
    fn a_function_becomes_a_constant_of_what_it_returns() {
        let text = expanded("/// Loads.\n pub(crate) fn load(path: PathBuf) -> Model { m(path) }");
        assert!(text.starts_with("#[doc"), "{text}");
        assert_contains(
            &text,
            "pub(crate) const load: ::hatchery::State<Model, PathBuf, fn(PathBuf) -> Model> = {",
        );
        assert_contains(&text, "Build::Sync(__build)");
        assert_contains(&text, "StateType::of::<Model>()");
        assert_contains(&text, "must_travel::<PathBuf>;");
        assert!(!text.contains("must_travel::<Model>"), "state does not travel: {text}");
    }

    #[test]
    fn of_a_result_the_state_is_what_it_holds() {
        let text = expanded("fn load() -> hatchery::Result<Model> { m() }");
        assert_contains(
            &text,
            "State<<hatchery::Result<Model> as ::hatchery::__private::ResultParts>::Ok, (), fn() -> hatchery::Result<Model> >",
        );
        assert_contains(&text, "built(__returned)");
    }

    #[test]
    fn an_async_function_stays_on_its_thread() {
        let text = expanded("async fn load(path: PathBuf) -> Model { m(path).await }");
        assert_contains(&text, "fn(PathBuf) -> ::hatchery::__private::LocalFuture<'static, Model>");
        assert_contains(&text, "Build::Async(__build)");
    }

    #[test]
    fn bytes_and_many_parameters_travel_as_those_of_tasks() {
        let text = expanded("fn load(weights: Vec<u8>, scale: f32) -> Model { m(weights, scale) }");
        assert_contains(&text, "Decoding::<(::hatchery::__private::ByteString, f32)>");
        assert_contains(&text, "load(__arg0.into_vec(), __arg1)");
    }

    #[test]
    fn every_mistake_says_what_to_write() {
        for (item, why) in [
            ("fn f() {}", "write `-> S`"),
            ("fn f() -> () {}", "`()` is no state"),
            ("fn f() -> Result<(), E> { g() }", "`()` is no state"),
            ("fn f() -> ! { loop {} }", "write the type that the function returns"),
            ("fn f() -> impl Model { g() }", "write the type itself"),
            ("fn f() -> &'a Model { g() }", "instead of one with `'a`"),
            ("fn f() -> &Model { g() }", "instead of one with `&`"),
            ("fn f() -> Result<Guard<'_>, E> { g() }", "instead of one with `'_`"),
            ("fn f<T>(x: T) -> Model { g(x) }", "write what `T` stands for"),
            ("fn f(path: &Path) -> Model { g(path) }", "write `PathBuf`"),
            ("fn f(&self) -> Model { g() }", "write a free function"),
            ("fn f(cx: &Context) -> Model { g() }", "`hatchery::current()`"),
            ("unsafe fn f() -> Model { g() }", "cannot be `unsafe`"),
            ("struct F;", "state is what a function returns"),
        ] {
            let refusal = refusal(item);
            assert!(refusal.contains(why), "{item}: {refusal:?} does not say {why:?}");
            assert!(!refusal.starts_with(char::is_uppercase), "{refusal:?}");
        }
        for item in [
            "fn f() -> &'static Model { g() }",
            "fn f() -> Box<dyn Model> { g() }",
            "fn f() -> Rc<u8> { g() }",
        ] {
            assert_eq!(refusal(item), "", "{item}");
        }
        let text = expand(quote!(name = "x"), tokens("fn f() -> Model { g() }")).to_string();
        assert!(text.contains("takes no options yet"), "{text}");
    }

    #[test]
    fn a_stand_in_has_the_type_of_what_was_refused() {
        let text = expand(TokenStream::new(), tokens("pub fn f(x: &str) -> Model { g(x) }")).to_string();
        assert_eq!(text.matches("compile_error").count(), 1, "{text}");
        let text: String = text.split_whitespace().collect();
        assert_contains(
            &text,
            "pub const f: ::hatchery::State<Model, &str, fn(&str) -> Model> = ::hatchery::State::refused(",
        );
    }
}
